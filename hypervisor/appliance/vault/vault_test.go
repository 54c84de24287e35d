package vault

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// newTPM returns a TPM of software, as it is when it is new.
func newTPM(t *testing.T) transport.TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // short: it is a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install the package swtpm", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		tpm, err := linuxudstpm.Open(socket)
		if err == nil {
			return tpm
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

// maker signs images.
type maker struct {
	key *rsa.PrivateKey
	pem []byte
	fp  string
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	fp := sha256.Sum256(der)
	return &maker{key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), hex.EncodeToString(fp[:])}
}

// sign signs what PCR 11 will have.
func (m *maker) sign(t *testing.T, pcr [sha256.Size]byte) bootimage.Signature {
	t.Helper()
	policy := bootimage.Policy(pcr)
	hash := sha256.Sum256(policy[:])
	sig, err := rsa.SignPKCS1v15(nil, m.key, crypto.SHA256, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	return bootimage.Signature{PCRs: []int{bootimage.KernelPCR}, Key: m.fp, Policy: policy[:], Signature: sig}
}

// start measures an image, and returns what PCR 11 has then.
func start(t *testing.T, tpm transport.TPM, image string) [sha256.Size]byte {
	t.Helper()
	return extend(t, tpm, bootimage.KernelPCR, image)
}

// extend measures something into a register that has nothing yet.
func extend(t *testing.T, tpm transport.TPM, pcr tpm2.TPMHandle, what string) [sha256.Size]byte {
	t.Helper()
	digest := sha256.Sum256([]byte(what))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(append(make([]byte, sha256.Size), digest[:]...))
}

func TestSeal(t *testing.T) {
	tpm, ours, other := newTPM(t), newMaker(t), newMaker(t)
	pcr := start(t, tpm, "image")
	key := []byte("0123456789abcdef0123456789abcdef")
	token, err := seal(tpm, key, ours.pem)
	if err != nil {
		t.Fatal(err)
	}
	good := ours.sign(t, pcr)
	forged := good
	forged.Signature = other.sign(t, pcr).Signature
	changed := *token
	changed.Trusted = other.pem // whoever has the disk can write into its header
	damaged := *token
	damaged.Private = bytes.Clone(token.Private)
	damaged.Private[len(damaged.Private)-1] ^= 1
	for _, c := range []struct {
		name       string
		tpm        transport.TPM
		token      *sealed
		signatures []bootimage.Signature
		want       error // nil is any
	}{
		{"no signature", tpm, token, nil, errUnsigned},
		{"another's signature", tpm, token, []bootimage.Signature{other.sign(t, pcr)}, errOtherKey},
		{"a signature of another image", tpm, token, []bootimage.Signature{ours.sign(t, sha256.Sum256([]byte("other")))}, errMeasurement},
		{"a forged signature", tpm, token, []bootimage.Signature{forged}, nil},
		{"another's key in the header", tpm, &changed, []bootimage.Signature{other.sign(t, pcr)}, nil},
		{"a damaged header", tpm, &damaged, []bootimage.Signature{good}, nil},
	} {
		got, err := unseal(c.tpm, c.token, c.signatures)
		if err == nil || got != nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %x, %v; want %v", c.name, got, err, c.want)
		}
	}
	for range 5 { // and leaves nothing behind in the TPM, which has room for three objects
		if got, err := unseal(tpm, token, []bootimage.Signature{other.sign(t, pcr), good}); err != nil || !bytes.Equal(got, key) {
			t.Fatalf("the image that is trusted: %x, %v", got, err)
		}
	}
	secureBoot := extend(t, tpm, firmwarePCR, "Secure Boot is off")
	if got, err := unseal(tpm, token, []bootimage.Signature{good}); !errors.Is(err, errFirmware) {
		t.Errorf("with other firmware: %x, %v", got, err)
	}
	lying := *token // whoever has the disk can write what the firmware is now into its header
	lying.Firmware = secureBoot[:]
	if got, err := unseal(tpm, &lying, []bootimage.Signature{good}); err == nil {
		t.Errorf("with other firmware and a header that says it is the same: %x", got)
	}
	if token, err = seal(tpm, key, ours.pem); err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(tpm, token, []bootimage.Signature{good}); err != nil || !bytes.Equal(got, key) {
		t.Errorf("sealed anew: %x, %v", got, err)
	}
	if err := Leave(tpm); err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(tpm, token, []bootimage.Signature{good}); !errors.Is(err, errMeasurement) {
		t.Errorf("later: %x, %v", got, err)
	}
	cleared := newTPM(t)
	start(t, cleared, "image")
	if got, err := unseal(cleared, token, []bootimage.Signature{good}); !errors.Is(err, errOtherTPM) {
		t.Errorf("another TPM: %x, %v", got, err)
	}
}

// shim is cryptsetup for a kernel without dm-crypt: what is to be opened is only tried.
const shim = `#!/bin/sh
if [ "$2" = open ]; then
	for last; do :; done
	[ "$last" = inside ] || exit 9
	exec cryptsetup --batch-mode open --test-passphrase "$3" "$4" "$5"
fi
exec cryptsetup "$@"
`

func TestVault(t *testing.T) {
	dir := t.TempDir()
	v := &Vault{Device: filepath.Join(dir, "disk"), Name: "inside", Label: "test", Cryptsetup: filepath.Join(dir, "cryptsetup")}
	if err := errors.Join(os.WriteFile(v.Cryptsetup, []byte(shim), 0o700), os.WriteFile(v.Device, nil, 0o600), os.Truncate(v.Device, 32<<20)); err != nil {
		t.Fatal(err)
	}
	ctx, tpm, ours := t.Context(), newTPM(t), newMaker(t)
	passphrase := []byte("correct horse")
	if err := v.Make(ctx, []byte("short")); !errors.Is(err, ErrTooShort) {
		t.Errorf("a short passphrase: %v", err)
	}
	// As Make does, but quickly, and without what takes a kernel with dm-crypt: e2e/appliance has that.
	if _, err := v.cryptsetup(ctx, passphrase, nil, "luksFormat", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=-", v.Device); err != nil {
		t.Fatal(err)
	}
	if err := v.Open(ctx, passphrase); err != nil {
		t.Fatal(err)
	}
	if err := v.Open(ctx, []byte("wrong horse")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	image := Image{Signatures: []bootimage.Signature{ours.sign(t, start(t, tpm, "image"))}, Trusted: ours.pem}
	if err := v.OpenByTPM(ctx, tpm, image); err == nil {
		t.Error("a TPM opens it that was told nothing")
	}
	if err := v.Enroll(ctx, tpm, Image{}, passphrase); !errors.Is(err, errUnsigned) {
		t.Errorf("enrolled by an image without signatures: %v", err)
	}
	if err := v.Enroll(ctx, tpm, image, []byte("wrong horse")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("enrolled with a wrong passphrase: %v", err)
	}
	for range 2 { // the second replaces the first
		if err := v.Enroll(ctx, tpm, image, passphrase); err != nil {
			t.Fatal(err)
		}
		if err := v.OpenByTPM(ctx, tpm, image); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Open(ctx, passphrase); err != nil {
		t.Errorf("the passphrase, later: %v", err)
	}
	cleared := newTPM(t)
	start(t, cleared, "image")
	if err := v.OpenByTPM(ctx, cleared, image); !errors.Is(err, errOtherTPM) {
		t.Errorf("another TPM: %v", err)
	}
	if err := v.Enroll(ctx, cleared, image, passphrase); err != nil {
		t.Fatal(err)
	}
	if err := v.OpenByTPM(ctx, cleared, image); err != nil {
		t.Errorf("the TPM that was cleared, once it is told: %v", err)
	}
}
