package bootimage

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sassoftware/relic/v7/lib/authenticode"
)

// keyPair returns a private key and a certificate for it, as PEM.
func keyPair(t *testing.T, key crypto.Signer) (private, cert string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	c, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c}))
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSign(t *testing.T) {
	private, cert := keyPair(t, rsaKey(t))
	_, otherCert := keyPair(t, rsaKey(t))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecPrivate, ecCert := keyPair(t, ec)
	dir := writeFiles(t, map[string]string{"key": private, "cert": cert, "other": otherCert, "ec.key": ecPrivate, "ec.cert": ecCert,
		"encrypted": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n-----END ENCRYPTED PRIVATE KEY-----\n"})
	at := func(name string) string { return filepath.Join(dir, name) }
	key, err := LoadKey(at("cert"), at("key"))
	if err != nil {
		t.Fatal(err)
	}
	// One whose size is no multiple of what signatures are aligned to, too.
	for _, image := range [][]byte{read(t, debianStub), append(loader(), "abc"...)} {
		signed, err := key.Sign(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		sigs, err := authenticode.VerifyPE(bytes.NewReader(signed), false)
		if err != nil || len(sigs) != 1 || sigs[0].Certificate.Subject.CommonName != "test" {
			t.Errorf("signatures %v %v", sigs, err)
		}
		again, err := key.Sign(t.Context(), image)
		if err != nil || !bytes.Equal(signed, again) {
			t.Errorf("signed once more it differs (%v)", err)
		}
		twice, err := key.Sign(t.Context(), signed)
		if err != nil {
			t.Fatal(err)
		}
		if sigs, err := authenticode.VerifyPE(bytes.NewReader(twice), false); err != nil || len(sigs) != 1 {
			t.Errorf("what is signed twice has %d signatures (%v)", len(sigs), err)
		}
		signed[0x210]++
		if _, err := authenticode.VerifyPE(bytes.NewReader(signed), false); err == nil {
			t.Error("a changed image verifies")
		}
	}
	if _, err := key.Sign(t.Context(), []byte("no PE")); err == nil {
		t.Error("what is no EFI program is signed")
	}
	for _, tt := range []struct{ cert, key, want string }{
		{"other", "key", "does not match certificate"},
		{"ec.cert", "ec.key", "not an RSA key"},
		{"cert", "cert", "signing key"},
		{"cert", "encrypted", "has a passphrase"},
		{"absent", "key", "no such file"},
	} {
		if _, err := LoadKey(at(tt.cert), at(tt.key)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s with %s: %v, want %q", tt.key, tt.cert, err, tt.want)
		}
	}
}
