package bootimage

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"

	"github.com/sassoftware/relic/v7/lib/authenticode"
	"github.com/sassoftware/relic/v7/lib/certloader"
)

// Key signs EFI programs for Secure Boot.
type Key struct{ cert *certloader.Certificate }

// LoadKey reads a private RSA key and its certificate, as PEM or DER. The firmware must have the certificate, or one of those
// that issued it, in its database db. Other kinds of keys sign differently each time, and much firmware does not know them.
func LoadKey(certFile, keyFile string) (*Key, error) {
	if b, err := os.ReadFile(keyFile); err == nil && bytes.Contains(b, []byte("ENCRYPTED")) { // PEM, RFC 7468 §11 and RFC 1421
		return nil, fmt.Errorf("signing key %s: has a passphrase: make a copy without one by openssl pkcs8 -in %[1]s -out FILE", keyFile)
	}
	c, err := certloader.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("signing key %s with certificate %s: %w", keyFile, certFile, err)
	}
	if _, ok := c.PrivateKey.(*rsa.PrivateKey); !ok {
		return nil, fmt.Errorf("signing key %s: not an RSA key", keyFile)
	}
	return &Key{c}, nil
}

// Sign returns image, an EFI program, with a signature of its own, which replaces any that it has. Authenticode PE format.
func (k *Key) Sign(ctx context.Context, image []byte) ([]byte, error) {
	if _, err := parsePE(image); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	digest, err := authenticode.DigestPE(bytes.NewReader(image), crypto.SHA256, false)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	patch, _, err := digest.Sign(ctx, k.cert, nil)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	// The table of signatures is the last part of an image, and padded to 8 bytes before it.
	var out bytes.Buffer
	at := int64(0)
	for i, p := range patch.Patches {
		if p.Offset < at || p.Offset > int64(len(image)) {
			return nil, errors.New("sign: the image's table of signatures is not at its end")
		}
		out.Write(image[at:p.Offset])
		out.Write(patch.Blobs[i])
		at = p.Offset + int64(p.OldSize)
	}
	if at < int64(len(image)) {
		out.Write(image[at:])
	}
	return out.Bytes(), nil
}
