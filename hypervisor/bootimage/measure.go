package bootimage

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
)

// LoadMeasurementKey reads the private RSA key, as PEM of PKCS #1 or PKCS #8, that signs what a TPM will have measured of an image.
// It has nothing to do with Secure Boot's, and shall be another.
func LoadMeasurementKey(file string) (*rsa.PrivateKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("measurement key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("measurement key %s: not PEM: make one by openssl genrsa -out FILE 2048", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("measurement key %s: not a private RSA key without a passphrase: make one by openssl genrsa -out FILE 2048", file)
		}
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("measurement key %s: not an RSA key", file)
	}
	if n := rsaKey.N.BitLen(); n != 2048 {
		return nil, fmt.Errorf("measurement key %s: has %d bits; every TPM can check 2048, few can check others", file, n)
	}
	return rsaKey, nil
}

// measured are the sections of which systemd's stub tells the TPM, in its order. systemd-stub(7), of systemd 252.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}

// KernelPCR is the register of a TPM that the stub extends. Linux TPM PCR Registry.
const KernelPCR = 11

// measure returns what PCR 11 has, in the bank of SHA-256, when the stub starts the kernel: for each section its name with a
// zero byte, then its content.
func measure(sections []section) [sha256.Size]byte {
	var pcr [sha256.Size]byte
	extend := func(data []byte) {
		digest := sha256.Sum256(data)
		pcr = sha256.Sum256(append(pcr[:], digest[:]...))
	}
	for _, name := range measured {
		for _, s := range sections {
			if s.name == name {
				extend(append([]byte(name), 0))
				extend(s.data)
			}
		}
	}
	return pcr
}

// Policy returns the digest of a policy of TPM2_PolicyPCR alone, that PCR 11 has a value. TPM 2.0 Part 3, "TPM2_PolicyPCR".
func Policy(pcr [sha256.Size]byte) [sha256.Size]byte {
	const (
		commandPolicyPCR = 0x17f
		algSHA256        = 0xb
	)
	b := make([]byte, sha256.Size) // the policy before
	b = binary.BigEndian.AppendUint32(b, commandPolicyPCR)
	b = binary.BigEndian.AppendUint32(b, 1) // TPML_PCR_SELECTION: of one bank
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	b = append(b, 3, 0, 1<<(KernelPCR-8), 0)
	values := sha256.Sum256(pcr[:])
	return sha256.Sum256(append(b, values[:]...))
}

// Signature says of a policy that whoever has the key trusts it: an element of the section .pcrsig. systemd-measure(1).
type Signature struct {
	PCRs      []int    `json:"pcrs"`
	Key       string   `json:"pkfp"` // SHA-256 of the public key's DER, hexadecimal
	Policy    hexBytes `json:"pol"`
	Signature []byte   `json:"sig"` // RSASSA with SHA-256, of the policy
}

// hexBytes are hexadecimal in JSON.
type hexBytes []byte

// MarshalText implements [encoding.TextMarshaler].
func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// bank is that of a TPM for which there are signatures.
const bank = "sha256"

// ReadSignatures reads the section .pcrsig, which systemd's stub hands to the initramfs.
func ReadSignatures(text []byte) ([]Signature, error) {
	var banks map[string][]Signature
	if err := json.Unmarshal(text, &banks); err != nil {
		return nil, fmt.Errorf("signatures of measurements: %w", err)
	}
	return banks[bank], nil
}

// By reports whether it is of a key, by its fingerprint, and of [KernelPCR] alone.
func (s *Signature) By(key *rsa.PublicKey) bool {
	der, err := x509.MarshalPKIXPublicKey(key)
	return err == nil && s.Key == fingerprint(der) && slices.Equal(s.PCRs, []int{KernelPCR})
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// signMeasurements returns sections with .pcrpkey and .pcrsig: the public key, and its signature of what PCR 11 will have.
func signMeasurements(key *rsa.PrivateKey, sections []section) ([]section, error) {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("measurement key: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	sections = append(sections, section{".pcrpkey", public}) // measured too
	policy := Policy(measure(sections))
	hash := sha256.Sum256(policy[:])
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		return nil, fmt.Errorf("measurement key: %w", err)
	}
	text, err := json.Marshal(map[string][]Signature{bank: {{PCRs: []int{KernelPCR}, Key: fingerprint(der), Policy: policy[:], Signature: sig}}})
	if err != nil {
		return nil, err
	}
	return append(sections, section{".pcrsig", text}), nil
}

// Measurement returns what PCR 11 will have, in the bank of SHA-256, when a UKI's stub starts the kernel.
func Measurement(uki []byte) ([sha256.Size]byte, error) {
	var sections []section
	h, err := parsePE(uki)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("UKI: %w", err)
	}
	for _, s := range h.sections {
		name := string(bytes.TrimRight(s.Name[:], "\x00"))
		if !slices.Contains(measured, name) {
			continue
		}
		if s.VirtualSize > s.SizeOfRawData || s.VirtualSize == 0 {
			return [sha256.Size]byte{}, fmt.Errorf("UKI: section %s has %d bytes in the file, %d in memory", name, s.SizeOfRawData, s.VirtualSize)
		}
		sections = append(sections, section{name, uki[s.PointerToRawData:][:s.VirtualSize]})
	}
	pcr := measure(sections)
	if pcr == [sha256.Size]byte{} {
		return pcr, errors.New("UKI: has no section that is measured")
	}
	return pcr, nil
}
