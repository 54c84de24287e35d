package vault

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// Reasons for which a TPM does not give a key out.
var (
	errFirmware      = errors.New("the firmware's Secure Boot is not as it was: it was switched, or its keys were changed")
	errOtherTPM      = errors.New("the TPM was cleared, or is another one")
	errUnsigned      = errors.New("the image was built without --pcr-key: it has no signature of what the TPM measures")
	errOtherKey      = errors.New("the image is signed with another key than the one that the state trusts")
	errMeasurement   = errors.New("what the TPM has measured is not what the image's signature says: the image was changed, or the TPM was used already since the start")
	errNoMeasurement = errors.New("the TPM keeps no measurements with SHA-256")
)

// sealed is a key that a TPM gives out only if what it has measured was signed: a token of a LUKS header.
type sealed struct {
	Type     string   `json:"type"`     // tokenType
	Keyslots []string `json:"keyslots"` // that the key opens
	Parent   []byte   `json:"parent"`   // name of the TPM's storage root key
	Firmware []byte   `json:"firmware"` // PCR 7 when it was sealed
	Public   []byte   `json:"public"`   // TPM2B_PUBLIC and
	Private  []byte   `json:"private"`  // TPM2B_PRIVATE, of the object with the key
	Trusted  []byte   `json:"trusted"`  // PEM of the public key that signs images
}

// storageRoot makes a TPM's storage root key, which is the same each time until the TPM is cleared. It has no password.
func storageRoot(tpm transport.TPM) (root tpm2.NamedHandle, public *tpm2.TPMTPublic, release func(), err error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if err != nil {
		return root, nil, nil, fmt.Errorf("TPM: storage root key: %w", err)
	}
	release = func() { _, _ = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(tpm) }
	if public, err = r.OutPublic.Contents(); err != nil {
		release()
		return root, nil, nil, fmt.Errorf("TPM: storage root key: %w", err)
	}
	return tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, public, release, nil
}

// signer returns the TPM's form of a public key that signs images.
func signer(trusted []byte) (*tpm2.TPMTPublic, *rsa.PublicKey, error) {
	block, _ := pem.Decode(trusted)
	if block == nil {
		return nil, nil, errors.New("the public key that signs images is not PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("the public key that signs images: %w", err)
	}
	k, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, nil, errors.New("the public key that signs images is not RSA")
	}
	return &tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(k.N.BitLen()), Exponent: uint32(k.E)}), //nolint:gosec // a public exponent
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()}),
	}, k, nil
}

// firmwarePCR is the register of the state of Secure Boot, and of its keys: TCG PC Client Platform Firmware Profile, 3.3.4.8. Where it is on, the stub takes no other
// parameters for the kernel than those that were measured.
const firmwarePCR = 7

// selection is one register, in the bank of SHA-256.
func selection(pcr uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcr)}}}
}

// read returns what a register has.
func read(tpm transport.TPM, pcr uint) (value [sha256.Size]byte, err error) {
	r, err := tpm2.PCRRead{PCRSelectionIn: selection(pcr)}.Execute(tpm)
	if err != nil {
		return value, fmt.Errorf("TPM: reading PCR %d: %w", pcr, err)
	}
	if len(r.PCRValues.Digests) != 1 || len(r.PCRValues.Digests[0].Buffer) != sha256.Size {
		return value, errNoMeasurement
	}
	return [sha256.Size]byte(r.PCRValues.Digests[0].Buffer), nil
}

// seal has a TPM seal a key for images that are signed with a public key, PEM, while Secure Boot is as it is now.
func seal(tpm transport.TPM, key, trusted []byte) (*sealed, error) {
	public, _, err := signer(trusted)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err == nil {
		err = tpm2.PolicyAuthorize{KeySign: *name}.Update(policy)
	}
	if err != nil {
		return nil, err
	}
	firmware, err := read(tpm, firmwarePCR)
	if err != nil {
		return nil, err
	}
	values := sha256.Sum256(firmware[:])
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: values[:]}, Pcrs: selection(firmwarePCR)}).Update(policy); err != nil {
		return nil, err
	}
	root, rootPublic, release, err := storageRoot(tpm)
	if err != nil {
		return nil, err
	}
	defer release()
	// The key goes to the TPM encrypted: somebody may listen on the wires.
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(root.Handle, *rootPublic))
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: root.Handle, Name: root.Name, Auth: session},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true}, // no password: by the policy alone
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy.Hash().Digest},
		}),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM: sealing a key: %w", err)
	}
	return &sealed{
		Type: tokenType, Parent: root.Name.Buffer, Firmware: firmware[:], Public: tpm2.Marshal(r.OutPublic), Private: tpm2.Marshal(r.OutPrivate), Trusted: trusted,
	}, nil
}

// approved returns the signature, of those that the image has, of what the TPM has measured.
func approved(tpm transport.TPM, trusted *rsa.PublicKey, signatures []bootimage.Signature) (*bootimage.Signature, error) {
	if len(signatures) == 0 {
		return nil, errUnsigned
	}
	pcr, err := read(tpm, bootimage.KernelPCR)
	if err != nil {
		return nil, err
	}
	policy := bootimage.Policy(pcr)
	reason := errOtherKey
	for _, s := range signatures {
		switch {
		case !s.By(trusted):
		case !bytes.Equal(s.Policy, policy[:]):
			reason = errMeasurement
		default:
			return &s, nil
		}
	}
	return nil, reason
}

// unseal has a TPM give a key out. Its reason not to is one of those above, or an error of the TPM's.
func unseal(tpm transport.TPM, s *sealed, signatures []bootimage.Signature) ([]byte, error) {
	public, trusted, err := signer(s.Trusted)
	if err != nil {
		return nil, err
	}
	sig, err := approved(tpm, trusted, signatures)
	if err != nil {
		return nil, err
	}
	root, rootPublic, release, err := storageRoot(tpm)
	if err != nil {
		return nil, err
	}
	defer release()
	if !bytes.Equal(root.Name.Buffer, s.Parent) {
		return nil, errOtherTPM
	}
	if firmware, err := read(tpm, firmwarePCR); err != nil {
		return nil, err
	} else if !bytes.Equal(firmware[:], s.Firmware) {
		return nil, errFirmware
	}
	object, objectRelease, err := load(tpm, root, s)
	if err != nil {
		return nil, err
	}
	defer objectRelease()
	signing, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*public), Hierarchy: tpm2.TPMRHOwner}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM: the key that signs images: %w", err)
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: signing.ObjectHandle}.Execute(tpm) }()
	digest := sha256.Sum256(sig.Policy)
	verified, err := tpm2.VerifySignature{
		KeyHandle: signing.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
			&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig.Signature}})},
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM: the image's signature: %w", err)
	}
	session, closeSession, err := tpm2.PolicySession(tpm, tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(root.Handle, *rootPublic))
	if err != nil {
		return nil, fmt.Errorf("TPM: session: %w", err)
	}
	defer func() { _ = closeSession() }()
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(bootimage.KernelPCR)}).Execute(tpm); err != nil {
		return nil, fmt.Errorf("TPM: policy of PCR %d: %w", bootimage.KernelPCR, err)
	}
	if _, err := (tpm2.PolicyAuthorize{PolicySession: session.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: sig.Policy},
		KeySign: signing.Name, CheckTicket: verified.Validation}).Execute(tpm); err != nil {
		return nil, fmt.Errorf("TPM: the image's signature: %w", err)
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(firmwarePCR)}).Execute(tpm); err != nil {
		return nil, fmt.Errorf("TPM: policy of PCR %d: %w", firmwarePCR, err)
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: session}}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM: %w", err)
	}
	return r.OutData.Buffer, nil
}

// load loads the object with the key into a TPM.
func load(tpm transport.TPM, root tpm2.NamedHandle, s *sealed) (object tpm2.NamedHandle, release func(), err error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](s.Public)
	if err != nil {
		return object, nil, fmt.Errorf("token: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](s.Private)
	if err != nil {
		return object, nil, fmt.Errorf("token: %w", err)
	}
	r, err := tpm2.Load{ParentHandle: root, InPrivate: *private, InPublic: *public}.Execute(tpm)
	if err != nil {
		return object, nil, fmt.Errorf("TPM: loading the sealed key: %w", err)
	}
	return tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, func() { _, _ = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(tpm) }, nil
}

// Leave has a TPM measure that the time of opening the state is over: from then on it gives the key to nobody until the next start.
func Leave(tpm transport.TPM) error {
	digest := sha256.Sum256([]byte("lodge: state"))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(bootimage.KernelPCR), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("TPM: PCR %d: %w", bootimage.KernelPCR, err)
	}
	return nil
}
