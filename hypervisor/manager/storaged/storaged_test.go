package storaged

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio/vhostuser"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

const diskSize = 8 << 20

// img runs qemu-img.
func img(t *testing.T, args ...string) {
	t.Helper()
	for try := 1; ; try++ {
		out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
		if err == nil {
			return
		}
		// On a busy machine the kernel may tell it that it took no time to derive a key, by which it cannot divide.
		if try == 20 || !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) {
			t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// make returns an image of the format, made with qemu-img's further options.
func newImage(t *testing.T, format string, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk."+format)
	img(t, append(append([]string{"create", "-q", "-f", format}, options...), path, "8M")...)
	return path
}

func config(t *testing.T, image Image) Config {
	return Config{Name: "root", Socket: filepath.Join(t.TempDir(), "s"), Image: image, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func run(t *testing.T, cfg Config) *Daemon {
	t.Helper()
	d, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, d) })
	return d
}

func stop(t *testing.T, d *Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// request does one request on the disk at cfg's socket and returns the data that comes back. It fails the test unless the
// status is zero.
func request(t *testing.T, cfg Config, kind byte, data []byte, n int) []byte {
	t.Helper()
	b, err := vhostuser.Open(t.Context(), vhostuser.Config{Name: "root", Dial: vhostuser.DialPath(cfg.Socket), Timeout: 20 * time.Second, Log: cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d, err := vhostuser.New(b, vhostuser.Options{ReadOnly: cfg.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	r := virtiotest.New(t, d, 0)
	defer r.Stop()
	chain := []virtiotest.Desc{r.Out([]byte{kind, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0})} // at sector 8
	if data != nil {
		chain = append(chain, r.Out(data))
	}
	if n > 0 {
		chain = append(chain, r.In(n))
	}
	status := r.In(1)
	chain = append(chain, status)
	r.Queues[0].Do(chain...)
	if s := r.Bytes(status.Addr, 1)[0]; s != 0 {
		t.Fatalf("request %d: status %d", kind, s)
	}
	if n == 0 {
		return nil
	}
	return bytes.Clone(r.Bytes(chain[len(chain)-2].Addr, n))
}

const (
	in    = 0
	out   = 1
	flush = 4
)

// The passphrase of encrypted images, and how qemu-img is told.
const (
	key       = "correct horse"
	keyObject = "secret,id=k,data=" + key
)

// Every kind of image keeps what is written to it, also when the daemon ends and another takes its place.
func TestKinds(t *testing.T) {
	base := newImage(t, "raw")
	for name, image := range map[string]Image{
		"raw":   {Path: newImage(t, "raw"), Format: Raw},
		"qcow2": {Path: newImage(t, "qcow2"), Format: QCOW2},
		"LUKS":  {Path: newImage(t, "luks", "--object", keyObject, "-o", "key-secret=k,iter-time=10"), Format: LUKS, Secret: []byte(key)},
		"qcow2 with LUKS": {Path: newImage(t, "qcow2", "--object", keyObject, "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"),
			Format: QCOW2, Secret: []byte(key)},
		"qcow2 on raw": {Path: newImage(t, "qcow2", "-b", base, "-F", "raw"), Format: QCOW2, Backing: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, image)
			d := run(t, cfg)
			if d.Capacity() != diskSize {
				t.Errorf("%d bytes", d.Capacity())
			}
			want := bytes.Repeat([]byte("lodge..."), 512)
			request(t, cfg, out, want, 0)
			request(t, cfg, flush, nil, 0)
			if image.Format != Raw {
				content, err := os.ReadFile(image.Path)
				if err != nil {
					t.Fatal(err)
				}
				if encrypted := len(image.Secret) > 0; bytes.Contains(content, want) == encrypted {
					t.Errorf("encrypted: %v; found in the image: %v", encrypted, !encrypted)
				}
			}
			stop(t, d)
			if wrong := cfg; image.Format == LUKS { // here, as it takes seconds to make one
				wrong.Image.Secret = []byte("wrong")
				d, err := Start(t.Context(), wrong)
				if err == nil {
					stop(t, d)
				}
				if err == nil || !strings.Contains(err.Error(), "Invalid password") {
					t.Errorf("with a wrong secret: %v", err)
				}
			}
			run(t, cfg)
			if got := request(t, cfg, in, nil, len(want)); !bytes.Equal(got, want) {
				t.Errorf("read %.20q", got)
			}
		})
	}
}

// A disk on an NBD server, which is another storage daemon.
func TestNBD(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nbd")
	server := exec.Command(Program, // which outlives the test's context, as the other is stopped after that
		"--blockdev", "driver=file,node-name=f,filename="+newImage(t, "raw"),
		"--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "nbd,id=e,node-name=f,name=disk,writable=on")
	server.Stderr = t.Output()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	cfg := config(t, Image{URL: "nbd+unix:///disk?socket=" + socket, Format: Raw})
	run(t, cfg)
	want := bytes.Repeat([]byte{7}, 512)
	request(t, cfg, out, want, 0)
	if got := request(t, cfg, in, nil, 512); !bytes.Equal(got, want) {
		t.Errorf("read %x", got[:8])
	}
}

func TestReadOnly(t *testing.T) {
	cfg := config(t, Image{Path: newImage(t, "qcow2"), Format: QCOW2})
	cfg.ReadOnly = true
	run(t, cfg)
	if got := request(t, cfg, in, nil, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Errorf("read %x", got[:8])
	}
}

func TestRefused(t *testing.T) {
	raw := newImage(t, "raw")
	for want, image := range map[string]Image{
		"no such file":                   {Path: filepath.Join(t.TempDir(), "none"), Format: Raw},
		"neither a file nor":             {Path: t.TempDir(), Format: Raw},
		"not a qcow2 image":              {Path: raw, Format: QCOW2},
		"builds on another file":         {Path: newImage(t, "qcow2", "-b", raw, "-F", "raw"), Format: QCOW2},
		"has its data in another file":   {Path: newImage(t, "qcow2", "-o", "data_file="+raw+".data"), Format: QCOW2},
		"needs its secret":               {Path: raw, Format: LUKS},
		"of no use":                      {Path: raw, Format: Raw, Secret: []byte("x")},
		"format \"vmdk\"":                {Path: raw, Format: "vmdk"},
		"at a path or at a URL":          {Format: Raw},
		"nbd://host:port/export":         {URL: "http://x/y", Format: Raw},
		"Failed to connect to '/nobody'": {URL: "nbd+unix:///e?socket=/nobody", Format: Raw},
	} {
		cfg := config(t, image)
		d, err := Start(t.Context(), cfg)
		if err == nil {
			stop(t, d)
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "root") {
			t.Errorf("want %q: %v", want, err)
		}
		if _, err := os.Stat(cfg.Socket); err == nil {
			t.Errorf("%q: the socket is left", want)
		}
	}
}

// An image has one writer: the second daemon is not started.
func TestLocked(t *testing.T) {
	image := Image{Path: newImage(t, "qcow2"), Format: QCOW2}
	run(t, config(t, image))
	d, err := Start(t.Context(), config(t, image))
	if err == nil {
		stop(t, d)
	}
	if err == nil || !strings.Contains(err.Error(), "is in use by another guest") {
		t.Errorf("%v", err)
	}
}

func TestSecretNotVisible(t *testing.T) {
	args := strings.Join(arguments(Config{Image: Image{Format: LUKS, Secret: []byte("hush")}}, nil), " ")
	if strings.Contains(args, "hush") || !strings.Contains(args, "/proc/self/fd/6") {
		t.Error(args)
	}
}

func TestDies(t *testing.T) {
	d := run(t, config(t, Image{Path: newImage(t, "raw"), Format: Raw}))
	if err := d.cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("nobody noticed")
	}
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	d.err = nil // for the cleanup, which has nothing to complain about
}

func TestParseNBD(t *testing.T) {
	for in, want := range map[string]string{
		"nbd://h/e":               `{"host":"h","port":"10809","type":"inet"} e`,
		"nbd://[::1]:99/":         `{"host":"::1","port":"99","type":"inet"} `,
		"nbd+unix:///a?socket=/s": `{"path":"/s","type":"unix"} a`,
		"nbd+unix://h/a?socket=s": "",
		"nbd:///a":                "",
		"nbds://h/a":              "",
		"::":                      "",
	} {
		server, export, err := parseNBD(in)
		got := ""
		if err == nil {
			got = server.String() + " " + export
		}
		if got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

// A daemon is found by its PID file, and nobody else is.
func TestPID(t *testing.T) {
	cfg := config(t, Image{Path: newImage(t, "qcow2"), Format: QCOW2})
	cfg.PIDFile = filepath.Join(t.TempDir(), "pid")
	d := run(t, cfg)
	pid, ok := PID(cfg.PIDFile)
	if !ok || pid != d.cmd.Process.Pid {
		t.Errorf("%d, %t", pid, ok)
	}
	for what, text := range map[string]string{"another's": "1", "nonsense": "x"} {
		file := filepath.Join(t.TempDir(), "pid")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if pid, ok := PID(file); ok {
			t.Errorf("%s: %d", what, pid)
		}
	}
	stop(t, d)
	if pid, ok := PID(cfg.PIDFile); ok {
		t.Errorf("of one that has ended: %d", pid)
	}
	if again, err := Start(t.Context(), cfg); err != nil {
		t.Error(err)
	} else {
		stop(t, again)
	}
}

func TestEncrypted(t *testing.T) {
	for want, images := range map[bool][]Image{
		false: {{Path: newImage(t, "qcow2"), Format: QCOW2}, {Path: newImage(t, "raw"), Format: Raw}, {URL: "nbd://h/x", Format: QCOW2}},
		true: {{Path: newImage(t, "qcow2", "--object", keyObject, "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"), Format: QCOW2},
			{Path: "/any", Format: LUKS}},
	} {
		for _, i := range images {
			if got, err := i.Encrypted(); err != nil || got != want {
				t.Errorf("%+v: %t, %v", i, got, err)
			}
		}
	}
	if _, err := (&Image{Path: newImage(t, "raw"), Format: QCOW2}).Encrypted(); err == nil {
		t.Error("a raw image is taken for a qcow2")
	}
}
