package bootimage

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func measurementKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// systemd-measure calculates the same from the parts.
func TestMeasurementIsSystemds(t *testing.T) {
	u := &UKI{Stub: read(t, debianStub), Kernel: testKernel(), Initramfs: []byte("initramfs"), Cmdline: "quiet", Release: "1.2"}
	for _, key := range []*rsa.PrivateKey{nil, measurementKey(t)} {
		u.MeasurementKey = key
		image, _, err := u.Build()
		if err != nil {
			t.Fatal(err)
		}
		pcr, err := Measurement(image)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		args := []string{"calculate", "--bank=sha256", "--phase="}
		for name, data := range sectionsOf(t, image) {
			switch name {
			case ".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey":
				file := filepath.Join(dir, name)
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--"+name[1:]+"="+file)
			}
		}
		out, err := exec.CommandContext(t.Context(), "/lib/systemd/systemd-measure", args...).Output()
		if err != nil {
			t.Fatalf("systemd-measure: %v", err)
		}
		if want := "11:sha256=" + hex.EncodeToString(pcr[:]); strings.TrimSpace(string(out)) != want {
			t.Errorf("with key %v: systemd-measure says %s, want %s", key != nil, out, want)
		}
	}
}

func TestMeasurementSigned(t *testing.T) {
	key := measurementKey(t)
	u := &UKI{Stub: read(t, debianStub), Kernel: testKernel(), Initramfs: []byte("initramfs"), Cmdline: "quiet", Release: "1.2", MeasurementKey: key}
	image, _, err := u.Build()
	if err != nil {
		t.Fatal(err)
	}
	sections := sectionsOf(t, image)
	block, _ := pem.Decode(sections[".pcrpkey"])
	if block == nil {
		t.Fatalf(".pcrpkey is no PEM: %q", sections[".pcrpkey"])
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil || !key.PublicKey.Equal(public) {
		t.Fatalf(".pcrpkey has %v, %v", public, err)
	}
	signatures, err := ReadSignatures(sections[".pcrsig"])
	if err != nil || len(signatures) != 1 {
		t.Fatalf(".pcrsig: %v: %s", err, sections[".pcrsig"])
	}
	pcr, err := Measurement(image)
	if err != nil {
		t.Fatal(err)
	}
	s, policy := signatures[0], Policy(pcr)
	if !bytes.Equal(s.Policy, policy[:]) {
		t.Errorf("the policy signed is %x, of the image %x", s.Policy, policy)
	}
	if other := measurementKey(t); !s.By(&key.PublicKey) || s.By(&other.PublicKey) {
		t.Error("the signature is not by its key, or by another")
	}
	hash := sha256.Sum256(policy[:])
	if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, hash[:], s.Signature); err != nil {
		t.Error(err)
	}

	u.Cmdline = "quiet init=/bin/sh"
	image, _, err = u.Build()
	if err != nil {
		t.Fatal(err)
	}
	if other, err := Measurement(image); err != nil || other == pcr {
		t.Errorf("another command line measures %x, %v, as before", other, err)
	}
}

func TestMeasurementKeyRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"nothing": "not PEM",
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})):                            "not a private RSA key",
		string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(large)})): "has 3072 bits",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadMeasurementKey(file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, want %q", content[:7], err, want)
		}
	}
}
