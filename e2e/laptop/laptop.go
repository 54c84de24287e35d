package laptop

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lodgehv/lodge/e2e/desk"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
)

// White is the colour of the instant-on guest's screen: the browser's first page.
var White = color.RGBA{255, 255, 255, 255}

// Work is the main guest: a Debian with a desktop, on the notebook's second disk, that somebody starts from Lodge's console.
var Work = desk.Desktop{Name: "work", Color: "blue", Slot: 2, Card: "virtio", Wallpaper: color.RGBA{0x20, 0x3a, 0x5c, 255}}

// workText is its definition. It boots behind the instant-on guest, which has ten times its share of the processor.
const workText = `name = "work"
label = "the company's Debian"
color = "blue"
slot = 2
memory = "384M"
[boot]
kernel = "vmlinux"
initrd = "initrd"
cmdline = "console=ttyS0 root=/dev/vda rw panic=-1 lodge.name=work lodge.color=203a5c"
[ready]
serial = "lodge-guest: terminal"
timeout = "10m"
[shares]
cpu = 100
[display]
[[disk]]
name = "root"
path = "/dev/vdb"
`

// Shows returns whether at least four tenths of a picture have a colour.
func Shows(c color.RGBA) func(image.Image) bool {
	return func(img image.Image) bool { return desk.Share(img, img.Bounds(), c) >= 0.4 }
}

// ShowsDesktop returns whether the desktop of a guest is on a picture.
func ShowsDesktop(k desk.Desktop) func(image.Image) bool {
	return func(img image.Image) bool { return desk.Share(img, img.Bounds(), k.Wallpaper) >= 0.2 }
}

// TellsOfWork returns whether the bar tells that the main guest is ready, in that guest's colour, with another one on screen.
func TellsOfWork(img image.Image) bool {
	const (
		blue  = 0x1e63c8
		strip = 5   // rows at the bar's lower edge, which have the colour of the guest on screen
		field = 110 // columns at its left, as the field with that guest's name
	)
	n := 0
	for y := range desk.Bar - strip {
		for x := field; x < img.Bounds().Dx(); x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			if r>>8<<16|g>>8<<8|b>>8 == blue {
				n++
			}
		}
	}
	return n > 500
}

// Laptop is the notebook, switched off, with what it starts from.
type Laptop struct {
	Dir        string // of all that belongs to it
	LodgeImage string // the program lodge-image
	Bin        string // directory with Lodge's programs
	Image      string // what lodge-image build has made: lodge.img, lodge.rom and others
	Disk       string // the disk with Lodge
	Options    string // of its drive
	ROM        string // the flash with Lodge
	Vars       string // the variables of firmware that starts from the disk
	Main       string // the main guest's disk
	Display    string // QEMU's -display; none if empty
	TPM        string // directory of a TPM's memory; there is no TPM if it is empty
	Stick      bool   // the disk with Lodge is a USB stick
	Counted    bool   // its clock counts instructions
	Console    string // the kernel's console that pages are on: ttyS0, or tty0 for the screen
}

// diskSize is the size of the disk with Lodge, bytes.
const diskSize = 8 << 30

// Config says what notebook it is.
type Config struct {
	Bin      string   // directory with Lodge's programs; they are built if it is empty
	Account  string   // USER@SERVER:PORT of the instant-on guest's mail; none if it is empty
	NoGuests bool     // no guests come along
	OnScreen bool     // the kernel's console is the screen
	Build    []string // more arguments of lodge-image build
}

// New builds the notebook's images in dir.
func New(ctx context.Context, b *lodgeimage.Builder, dir string, cfg Config) (*Laptop, error) {
	l := &Laptop{Dir: dir, Bin: cfg.Bin, Image: filepath.Join(dir, "image"), Console: "ttyS0"}
	if cfg.OnScreen {
		l.Console = "tty0"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if l.Bin == "" {
		l.Bin = filepath.Join(dir, "bin")
		if err := programs(ctx, b, l.Bin); err != nil {
			return nil, err
		}
	}
	l.LodgeImage = filepath.Join(l.Bin, "lodge-image")
	args := append([]string{"--media=disk,flash"}, cfg.Build...)
	if !cfg.NoGuests {
		guests, err := l.guests(ctx, b, cfg.Account)
		if err != nil {
			return nil, err
		}
		for _, g := range guests {
			args = append(args, "--guest="+g)
		}
	}
	if _, err := l.Build(ctx, l.Image, "1", args...); err != nil {
		return nil, err
	}
	l.Disk, l.ROM, l.Vars = filepath.Join(dir, "disk"), filepath.Join(l.Image, "lodge.rom"), filepath.Join(dir, "vars")
	for from, to := range map[string]string{filepath.Join(l.Image, "lodge.img"): l.Disk, "/usr/share/OVMF/OVMF_VARS_4M.fd": l.Vars} {
		if out, err := exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=always", from, to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	return l, os.Truncate(l.Disk, diskSize)
}

// programs makes a directory of Lodge's programs.
func programs(ctx context.Context, b *lodgeimage.Builder, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range []string{"lodge-init", "lodged", "lodge-vmm", "lodge-net", "lodge-seat", "lodge-image"} {
		path, _, err := b.GoProgram(ctx, "./cmd/"+p, "amd64")
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// guests makes the directories of the instant-on guest and the main guest.
func (l *Laptop) guests(ctx context.Context, b *lodgeimage.Builder, account string) ([]string, error) {
	from, err := b.Instant(ctx)
	if err != nil {
		return nil, err
	}
	desktop, err := b.Desktop(ctx)
	if err != nil {
		return nil, err
	}
	l.Main = desktop.Disk
	instant, work := filepath.Join(l.Dir, "instant"), filepath.Join(l.Dir, "work")
	if err := withAccount(from, instant, account); err != nil {
		return nil, err
	}
	return []string{instant, work}, errors.Join(os.Mkdir(work, 0o755), os.Symlink(desktop.Kernel.VMLinux, filepath.Join(work, "vmlinux")),
		os.Symlink(desktop.Initrd, filepath.Join(work, "initrd")), os.WriteFile(filepath.Join(work, "work.toml"), []byte(workText), 0o644))
}

// withAccount makes a directory with the same guest, whose mail is an account's.
func withAccount(guest, dir, account string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	files, err := os.ReadDir(guest)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Symlink(filepath.Join(guest, f.Name()), filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	if account == "" {
		return nil
	}
	name := filepath.Join(dir, "instant.toml")
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	changed := strings.Replace(string(text), `cmdline = "`, fmt.Sprintf(`cmdline = "instant.mail=%s instant.mail-tls=no `, account), 1)
	return errors.Join(os.Remove(name), os.WriteFile(name, []byte(changed), 0o644))
}

// Build has lodge-image build a release of Lodge, without drivers for cards that QEMU has not, which speaks on the serial console.
// The kernel's last console is the one that programs have.
func (l *Laptop) Build(ctx context.Context, out, release string, args ...string) (said string, err error) {
	other := "tty0"
	if l.Console == other {
		other = "ttyS0"
	}
	return l.Run(ctx, append([]string{"build", out, "--release=" + release, "--programs=" + l.Bin, "--without=i915,amdgpu,nouveau",
		fmt.Sprintf("--cmdline=console=%s console=%s panic=-1", other, l.Console)}, args...)...)
}

// Run runs lodge-image, and returns what it says.
func (l *Laptop) Run(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, l.LodgeImage, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("lodge-image %s: %w\n%s", args[0], err, out)
	}
	return string(out), nil
}

// FromDisk switches the notebook on; its firmware starts Lodge from the disk. There may be other disks, as that of the main guest.
func (l *Laptop) FromDisk(ctx context.Context, others ...string) (*Machine, error) {
	return l.powered(ctx, true, append([]string{l.Disk}, others...), "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,format=raw,unit=1,file="+l.Vars)
}

// FromFlash switches on a notebook with Lodge in its flash. Disks are that with Lodge, and that of the main guest; or less.
func (l *Laptop) FromFlash(ctx context.Context, disks ...string) (*Machine, error) {
	return l.powered(ctx, false, disks, "-drive", "if=pflash,format=raw,unit=0,snapshot=on,file="+l.ROM)
}

// powered switches on a notebook with disks and other parts, and has its firmware start the disk with Lodge, as from its boot menu: OVMF would start its shell
// before a disk that is new to its variables. The main guest's disk is not changed.
func (l *Laptop) powered(ctx context.Context, start bool, disks []string, parts ...string) (*Machine, error) {
	for i, d := range disks {
		options, first := "", ""
		switch d {
		case l.Disk:
			options = l.Options
			if start {
				first = ",bootindex=0"
			}
		case l.Main:
			options = ",snapshot=on"
		}
		device := "virtio-blk-pci"
		if d == l.Disk && l.Stick {
			parts = append(parts, "-device", "qemu-xhci")
			device = "usb-storage"
		}
		parts = append(parts, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s%s", i, d, options), "-device", fmt.Sprintf("%s,drive=d%d%s", device, i, first))
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, err
	}
	port := udp.LocalAddr().(*net.UDPAddr).Port
	if err := udp.Close(); err != nil {
		return nil, err
	}
	var tpm *exec.Cmd
	if l.TPM != "" {
		socket := filepath.Join(l.TPM, "s")
		if tpm, err = startTPM(ctx, l.TPM, socket); err != nil {
			return nil, err
		}
		parts = append(parts, "-chardev", "socket,id=tpm,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	if l.Counted {
		parts = append(parts, counted...)
	}
	display := l.Display
	if display == "" {
		display = "none"
	}
	m, err := Start(ctx, append(parts, "-m", "2048", "-smp", "1", "-display", display,
		"-device", "virtio-vga,xres=1024,yres=768", "-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci",
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=udp:127.0.0.1:%d-:9", port), "-device", "virtio-net-pci,netdev=n")...)
	if tpm != nil {
		if err != nil {
			_ = tpm.Process.Kill()
		}
		go tpm.Wait() //nolint:errcheck // it ends with QEMU's connection
	}
	if err != nil {
		return nil, err
	}
	if !l.Counted { // it would be counted
		go keepAwake(m.done, port)
	}
	return m, nil
}

// startTPM starts a TPM of software, whose memory is in a directory. It ends when QEMU does.
func startTPM(ctx context.Context, dir, socket string) (*exec.Cmd, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of the one before
		return nil, err
	}
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--ctrl", "type=unixio,path="+socket, "--terminate")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		if _, err := os.Stat(socket); err == nil {
			return cmd, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(begin) > 10*time.Second || ctx.Err() != nil {
			_ = cmd.Process.Kill()
			return nil, errors.Join(errors.New("swtpm does not listen"), cmd.Wait())
		}
	}
}

// Host is this machine, for the notebook: QEMU's network calls it so.
const Host = "10.0.2.2"

// keepAwake sends the notebook a packet each second, to a port where nobody listens: see keepAwake of package notebook.
func keepAwake(done <-chan struct{}, port int) {
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return
	}
	defer c.Close()
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Second):
			_, _ = c.Write([]byte("awake"))
		}
	}
}
