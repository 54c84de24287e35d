package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// MinPassphrase is how many bytes a new passphrase has at least.
const MinPassphrase = 8

// What is where in a LUKS header.
const (
	tokenType      = "lodge-tpm2" //nolint:gosec // no secret
	tokenID        = "0"
	passphraseSlot = "0"
	tpmSlot        = "1"
	keySize        = 32 // bytes, of the TPM's
)

// Programs that are run.
const (
	Cryptsetup = "/usr/sbin/cryptsetup"
	Mke2fs     = "/usr/sbin/mke2fs"
)

// Where systemd's stub leaves in the initramfs what the image has: the signatures of measurements, and the key that they are by.
const (
	stubSignatures = "/.extra/tpm2-pcr-signature.json"
	stubPublicKey  = "/.extra/tpm2-pcr-public-key.pem"
)

// tpmDevice is the TPM by way of the kernel's resource manager.
const tpmDevice = "/dev/tpmrm0"

// Errors that a passphrase can be blamed for.
var (
	ErrPassphrase = errors.New("this passphrase does not open the state")
	ErrTooShort   = fmt.Errorf("a passphrase has at least %d characters", MinPassphrase)
)

// Image is what the image that the machine was started with has for a TPM.
type Image struct {
	Signatures []bootimage.Signature
	Trusted    []byte // PEM of the public key that they are by; nil if it has none
}

// ReadImage returns what systemd's stub has left of the image. An image without signatures is none's fault.
func ReadImage() (Image, error) {
	var i Image
	text, err := os.ReadFile(stubSignatures)
	if errors.Is(err, fs.ErrNotExist) {
		return i, nil
	}
	if err == nil {
		i.Signatures, err = bootimage.ReadSignatures(text)
	}
	if err == nil {
		i.Trusted, err = os.ReadFile(stubPublicKey)
	}
	return i, err
}

// OpenTPM opens the machine's TPM.
func OpenTPM() (transport.TPMCloser, error) {
	tpm, err := linuxtpm.Open(tpmDevice)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this computer has no TPM 2.0, or its firmware has switched it off")
	}
	return tpm, err
}

// Vault is an encrypted partition.
type Vault struct {
	Device string // the partition
	Name   string // of the device of the device mapper's when it is open
	Label  string // of the LUKS header when the vault is whole, and of the file system in it
	// Cryptsetup is the program; [Cryptsetup] if it is "".
	Cryptsetup string
}

// cryptsetup runs it with a secret, and returns what it prints.
func (v *Vault) cryptsetup(ctx context.Context, secret []byte, more []*os.File, args ...string) ([]byte, error) {
	program := v.Cryptsetup
	if program == "" {
		program = Cryptsetup
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--batch-mode"}, args...)...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1") // there is none: it makes devices itself
	cmd.Stdin = bytes.NewReader(secret)
	cmd.ExtraFiles = more
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 { // cryptsetup(8): no permission, which is a bad passphrase
		return nil, ErrPassphrase
	}
	if s := strings.TrimSpace(complaint.String()); s != "" {
		err = errors.New(s)
	}
	return nil, fmt.Errorf("cryptsetup %s: %w", args[0], err)
}

// Make makes an encrypted partition with an ext4 file system in it, and leaves it open. Whatever was on the partition is lost. It is
// labelled last: one that a power cut left half made is not taken for a state.
func (v *Vault) Make(ctx context.Context, passphrase []byte) error {
	if len(passphrase) < MinPassphrase {
		return ErrTooShort
	}
	if _, err := v.cryptsetup(ctx, passphrase, nil, "luksFormat", "--type=luks2", "--key-slot="+passphraseSlot, "--key-file=-", v.Device); err != nil {
		return err
	}
	if err := v.Open(ctx, passphrase); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, Mke2fs, "-q", "-F", "-t", "ext4", "-L", v.Label, "/dev/mapper/"+v.Name).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(out))
	} else {
		_, err = v.cryptsetup(ctx, nil, nil, "config", "--label="+v.Label, v.Device)
	}
	if err != nil { // so that it can be tried again
		_, e := v.cryptsetup(ctx, nil, nil, "close", v.Name)
		err = errors.Join(err, e)
	}
	return err
}

// Open opens it by a passphrase, or by the TPM's key. A partition that cannot be written to is opened for reading.
func (v *Vault) Open(ctx context.Context, secret []byte) error {
	args := []string{"open", "--type=luks2", "--key-file=-", v.Device, v.Name}
	_, err := v.cryptsetup(ctx, secret, nil, args...)
	if err != nil && !errors.Is(err, ErrPassphrase) && readOnly(v.Device) {
		_, err = v.cryptsetup(ctx, secret, nil, append(args, "--readonly")...)
	}
	return err
}

// readOnly reports whether a device cannot be written to.
func readOnly(device string) bool {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err != nil
}

// Enroll has a TPM open it from now on, for images that are signed with the same key as this one; the passphrase opens it, too.
func (v *Vault) Enroll(ctx context.Context, tpm transport.TPM, image Image, passphrase []byte) error {
	if image.Trusted == nil {
		return errUnsigned
	}
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it does not fail
	token, err := seal(tpm, key, image.Trusted)
	if err != nil {
		return err
	}
	token.Keyslots = []string{tpmSlot}
	text, err := json.Marshal(token)
	if err != nil {
		return err
	}
	// Those before are of no use any more. That there are none is not told from other faults, which then show below.
	_, _ = v.cryptsetup(ctx, nil, nil, "token", "remove", "--token-id="+tokenID, v.Device)
	_, _ = v.cryptsetup(ctx, nil, nil, "luksKillSlot", v.Device, tpmSlot)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	_, err = w.Write(key) // less than a pipe takes
	w.Close()
	if err == nil {
		// A random key needs no work to slow down whoever guesses.
		_, err = v.cryptsetup(ctx, passphrase, []*os.File{r}, "luksAddKey", "--key-slot="+tpmSlot, "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
			"--key-file=-", v.Device, "/proc/self/fd/3")
	}
	r.Close()
	if err != nil {
		return err
	}
	_, err = v.cryptsetup(ctx, text, nil, "token", "import", "--token-id="+tokenID, "--json-file=-", v.Device)
	return err
}

// OpenByTPM opens it by a TPM, once since the machine's start: see [Leave].
func (v *Vault) OpenByTPM(ctx context.Context, tpm transport.TPM, image Image) error {
	key, err := v.unseal(ctx, tpm, image)
	if err != nil {
		return err
	}
	if err = v.Open(ctx, key); errors.Is(err, ErrPassphrase) {
		err = errors.New("the key that the TPM has kept is not that of the state")
	}
	return err
}

func (v *Vault) unseal(ctx context.Context, tpm transport.TPM, image Image) ([]byte, error) {
	text, err := v.cryptsetup(ctx, nil, nil, "token", "export", "--token-id="+tokenID, v.Device)
	if err != nil {
		return nil, errors.New("no TPM was ever told the state's key")
	}
	var s sealed
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("token %s of the state: %w", tokenID, err)
	}
	if s.Type != tokenType {
		return nil, fmt.Errorf("token %s of the state is not of type %s, but %q", tokenID, tokenType, s.Type)
	}
	return unseal(tpm, &s, image.Signatures)
}
