package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"

	devmapper "github.com/anatol/devmapper.go"
)

// EncryptParameter is "yes" on the kernel's command line if the state is to be encrypted: a new one is made so, and one that is not is
// not used.
const EncryptParameter = "lodge.encrypt"

// VaultName is the name of the device (dm-crypt) of an encrypted state that is open.
const VaultName = "lodge-state"

// kindLUKS is what blkid(8) calls an encrypted partition.
const kindLUKS = "crypto_LUKS"

// What the program of [Config.Vault] is told to do with a partition, its second argument: a passphrase is its input.
const (
	VaultMake = "make" // encrypts it
	VaultOpen = "open" // opens it; by a TPM if there is no passphrase
)

// encrypts reports whether the state is to be encrypted.
func (m *machine) encrypts() bool { return parameter(m.cmdline, EncryptParameter) == "yes" }

// vault does something with a partition, and returns what there is to be said about it. The error is for somebody at the console.
func (m *machine) vault(do, device string, passphrase []byte) (said string, err error) {
	said, err = m.reaper.converse(m.journal, passphrase, append(m.cfg.Vault, do, device)...)
	if err != nil && said != "" {
		return "", errors.New(said)
	}
	return said, err
}

// askVault has somebody answer a question with a passphrase that does it.
func (m *machine) askVault(do, device string, q *question) error {
	var said string
	q.try = func(passphrase []byte) (err error) {
		said, err = m.vault(do, device, passphrase)
		return err
	}
	err := m.ask(q)
	if err == nil {
		m.log.Info("passphrase is right", "so", said)
	}
	return err
}

// makeVault encrypts a partition with a passphrase that somebody chooses, and leaves it open.
func (m *machine) makeVault(device string) error {
	return m.askVault(VaultMake, device, &question{
		title: "Lodge encrypts this computer",
		text: "Guests, their disks and all that they keep will be on " + device + ", encrypted. Choose a passphrase, and keep it where it is not lost: " +
			"without it nobody can read them if the TPM of this computer does not open them, or if it has none.",
		fields: []string{"New passphrase", "Once more"},
		keys:   "Enter goes on  Esc goes on without: all is lost at the end",
	})
}

// openVault opens an encrypted partition, and returns the device with what is in it, and its kind.
func (m *machine) openVault(device string) (inside, kind string, err error) {
	inside, err = devicePath(VaultName)
	if err != nil { // it was not made just now
		if _, err = m.vault(VaultOpen, device, nil); err != nil {
			m.log.Info("state: the TPM does not open it", "err", err)
			err = m.askVault(VaultOpen, device, &question{
				title:  "The state of this computer is encrypted",
				text:   "No TPM opens it: " + err.Error() + ". If you did not expect that, somebody may have changed the computer: then do not type the passphrase here.",
				fields: []string{"Passphrase"},
				keys:   "Enter opens  Esc goes on without the state",
			})
		}
		if err == nil {
			inside, err = devicePath(VaultName)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("encrypted state on %s: %w", device, err)
	}
	f, err := os.Open(inside)
	if err == nil {
		defer f.Close()
		kind, _, err = fileSystem(f)
	}
	if err == nil && kind == "" {
		err = errors.New("there is no file system in it: it is damaged; nothing is made over it")
	}
	if err != nil {
		return "", "", fmt.Errorf("encrypted state on %s: %w", device, err)
	}
	return inside, kind, nil
}

// errNoAnswer says that nobody wanted to answer.
var errNoAnswer = errors.New("no passphrase was given")

// ask asks on the kernel's console until there is an answer that does, or none is to be given. The end of the machine ends it, too.
func (m *machine) ask(q *question) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case e := <-m.ends:
			m.end(e) // for whoever looks for it
			cancel()
		case <-ctx.Done():
		}
	}()
	m.log.Info("a passphrase is asked for on the console", "why", q.title)
	s, done, err := consolePage()
	if err != nil {
		return err
	}
	defer done()
	if !q.show(ctx, s) {
		return errNoAnswer
	}
	return nil
}

// closeVault forgets the key of an encrypted state.
func closeVault() error {
	if _, err := devicePath(VaultName); err != nil {
		return nil // there is none
	}
	if err := devmapper.Remove(VaultName); err != nil {
		return fmt.Errorf("closing the encrypted state: %w", err)
	}
	return nil
}
