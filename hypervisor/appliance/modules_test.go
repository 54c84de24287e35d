package appliance

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const aliasText = `# Aliases extracted from modules themselves.
alias pci:v00001AF4d00001042sv*sd*bc*sc*i* virtio_pci
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip[0-9a-f]*in* uas
alias dmi*:svn*Lodge/Inc*: special
alias cpu:type:x86,ven*fam*mod*:feature:*00C2* kvm_amd
alias fs-ext4 ext4
`

func TestAliases(t *testing.T) {
	a, err := readAliases(strings.NewReader(aliasText))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device string
		want   []string
	}{
		{"pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00", []string{"virtio_pci"}},
		{"pci:v00008086d00005845sv00001AF4sd00001100bc01sc08i02", []string{"nvme"}},
		{"pci:v00008086d00005845sv00001AF4sd00001100bc02sc08i02", nil},
		{"usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00", []string{"usb_storage", "uas"}},
		{"dmi:bvnSeaBIOS:bd04/01/2014:svnLodge/Inc:", []string{"special"}},
		{"cpu:type:x86,ven0002fam0017mod0001:feature:,0000,00C2,00C3", []string{"kvm_amd"}},
		{"fs-ext4", []string{"ext4"}},
		{"fs-ext", nil},
		{"", nil},
	} {
		if d := cmp.Diff(c.want, a.match(c.device)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.device, d)
		}
	}
	if _, err := readAliases(strings.NewReader("alias pci:[ x\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a bad pattern: %v", err)
	}
}

// Each module is loaded once, whatever asks for it and however it ends; what services need at once is waited for, and nothing else.
func TestColdplug(t *testing.T) {
	sys := t.TempDir()
	for dev, alias := range map[string]string{"a": "pci:v00001AF4d00001042sv0sd0bc0sc0i0\n", "a/b": "pci:v00001AF4d00001042sv1sd0bc0sc0i0\n", "c": "fs-ext4\n",
		"cpu": "cpu:type:x86,ven0002fam0017mod0001:feature:,0000,00C2,00C3\n"} {
		d := filepath.Join(sys, "devices", dev)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "modalias"), []byte(alias), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, err := readAliases(strings.NewReader(aliasText))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var loaded []string
	var log strings.Builder
	disk := make(chan struct{}) // until it is there
	m := &modules{aliases: a, tried: make(map[string]<-chan struct{}), log: slog.New(slog.NewTextHandler(&log, nil)), load: func(name, _ string) error {
		if name == "virtio_pci" {
			<-disk
		}
		mu.Lock()
		defer mu.Unlock()
		loaded = append(loaded, name)
		if name == "ext4" {
			return errors.New("out of order")
		}
		return unix.ENODEV
	}}
	if err := errors.Join(m.coldplug(sys), m.coldplug(sys)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if !slices.Contains(loaded, "kvm_amd") {
		t.Error("KVM was not waited for")
	}
	mu.Unlock()
	close(disk)
	m.loadAll("virtio_pci", "ext4")
	slices.Sort(loaded)
	if d := cmp.Diff([]string{"ext4", "kvm_amd", "virtio_pci"}, loaded); d != "" {
		t.Errorf("loaded (-want +got):\n%s", d)
	}
	if s := log.String(); strings.Contains(s, "virtio_pci") || !strings.Contains(s, "out of order") {
		t.Errorf("the log: absent hardware is none of its business, faults are:\n%s", s)
	}
}

func FuzzAliases(f *testing.F) {
	f.Add(aliasText, "pci:v00001AF4d00001042sv0sd0bc0sc0i0")
	f.Fuzz(func(_ *testing.T, text, device string) {
		if a, err := readAliases(strings.NewReader(text)); err == nil {
			a.match(device)
		}
	})
}
