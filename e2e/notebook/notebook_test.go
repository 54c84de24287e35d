package notebook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

func start(t *testing.T, cfg Config) (context.Context, *Notebook) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	cfg.Log = t.Output()
	begin := time.Now()
	n, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("up after %.2f s", time.Since(begin).Seconds())
	return ctx, n
}

func TestNotebook(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho hello\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, n := start(t, Config{Tools: map[string]string{"bin/hello": tool}})

	t.Run("tools", func(t *testing.T) {
		if out, err := n.Shell(ctx, "hello"); err != nil || out != "hello" {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("kvm", func(t *testing.T) {
		out, err := n.Shell(ctx, "ls /dev/kvm /dev/net/tun /dev/vhost-vsock /disk/amd64 /disk/i386; lspci | wc -l")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(out)
	})
	t.Run("clock", func(t *testing.T) {
		out, err := n.Shell(ctx, "date +%s")
		if err != nil {
			t.Fatal(err)
		}
		var sec int64
		if _, err := fmt.Sscan(out, &sec); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(time.Unix(sec, 0)).Abs(); d > 10*time.Second {
			t.Errorf("the notebook's clock is off by %v", d)
		}
	})
	t.Run("screen", func(t *testing.T) {
		b, err := n.Screendump(ctx, "vga", 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := png.DecodeConfig(bytes.NewReader(b))
		if err != nil || c.Width != 1024 || c.Height != 768 {
			t.Errorf("screen of %d×%d, %v; want 1024×768", c.Width, c.Height, err)
		}
	})
	t.Run("qmp", func(t *testing.T) {
		r, err := n.QMP(ctx, "query-status", nil)
		if err != nil {
			t.Fatal(err)
		}
		var st struct{ Running bool }
		if err := json.Unmarshal(r, &st); err != nil || !st.Running {
			t.Errorf("status %s, %v", r, err)
		}
		if _, err := n.QMP(ctx, "no-such-command", nil); err == nil {
			t.Error("an unknown command succeeded")
		}
	})
	t.Run("files", func(t *testing.T) {
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		begin := time.Now()
		if err := n.Put(ctx, bytes.NewReader(want), "/tmp/f", 0o600); err != nil {
			t.Fatal(err)
		}
		up := time.Since(begin)
		local := filepath.Join(t.TempDir(), "f")
		if err := n.GetFile(ctx, "/tmp/f", local); err != nil {
			t.Fatal(err)
		}
		t.Logf("4 MiB in after %v, back after %v", up, time.Since(begin))
		if got, err := os.ReadFile(local); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back of %d, or others; %v", len(got), len(want), err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := n.Run(short, "sleep", "100"); err == nil {
			t.Error("a command outlived its deadline")
		}
		if out, err := n.Shell(ctx, "pidof sleep || echo none"); err != nil || out != "none" {
			t.Errorf("after the deadline, sleep is %q, %v", out, err)
		}
	})
}

// console keeps a guest's serial console and tells when a text has come.
type console struct {
	bytes.Buffer
	want string
	seen chan struct{}
	t    *testing.T
	line []byte
	from time.Time
}

func (c *console) Write(p []byte) (int, error) {
	for _, b := range p {
		if c.line = append(c.line, b); b == '\n' {
			if strings.Contains(string(c.line), "lodge-guest:") {
				c.t.Logf("%5.1f s  %s", time.Since(c.from).Seconds(), strings.TrimSpace(string(c.line)))
			}
			c.line = c.line[:0]
		}
	}
	had := strings.Contains(c.String(), c.want)
	n, err := c.Buffer.Write(p)
	if !had && strings.Contains(c.String(), c.want) {
		close(c.seen)
	}
	return n, err
}

// The images work under QEMU as the VMM, whatever becomes of ours.
func TestNestedGuests(t *testing.T) {
	ctx, n := start(t, Config{})
	for _, tc := range []struct {
		arch, kernel, cmdline string
		args                  []string
	}{
		{"amd64", "vmlinux", "", nil},
		// A kernel without PAE has no PVH entry. The emulated SVM aborts when a
		// 32-bit guest's task register was set again by the VMM, which QEMU does
		// for these two devices of its own.
		{"i386", "vmlinuz", I386Cmdline, []string{"-global", "kvm-apic.vapic=off", "-M", "vmport=off"}},
	} {
		t.Run(tc.arch, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
			defer cancel()
			arch := tc.arch
			con := &console{want: "lodge-guest: ready", seen: make(chan struct{}), t: t, from: time.Now()}
			p, err := n.Start(rpc.Cmd{Stdout: con, Stderr: con, Args: append([]string{
				"qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-M", "q35,sata=off", "-accel", "kvm", "-cpu", "host", "-m", "512",
				"-kernel", "/guests/" + arch + "/" + tc.kernel, "-initrd", "/guests/" + arch + "/initrd",
				"-append", "console=ttyS0 quiet panic=-1 root=/dev/vda " + tc.cmdline,
				"-drive", "if=none,id=d,format=raw,file=/disk/" + arch, "-device", "virtio-blk-pci,drive=d",
				"-device", "virtio-serial-pci", "-chardev", "socket,id=a,path=/run/" + arch + ".agent,server=on,wait=off",
				"-device", "virtserialport,chardev=a,name=agent", "-serial", "stdio",
			}, tc.args...)})
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-con.seen:
			case <-p.Done():
				t.Fatalf("the guest ended before it was ready:\n%s\n%s", con, n.Postmortem())
			case <-ctx.Done():
				t.Fatalf("%v\n%s", context.Cause(ctx), n.Postmortem())
			}
			g, err := n.GuestAgent(ctx, "/run/"+arch+".agent", 0)
			if err != nil {
				t.Fatal(err)
			}
			out, err := g.Shell(ctx, "uname -mr; . /etc/os-release; echo $PRETTY_NAME; df -h / | tail -1; lspci | wc -l")
			if err != nil {
				t.Fatal(err)
			}
			t.Log(out)
			if !strings.Contains(out, "Debian GNU/Linux 12") {
				t.Error("not Debian 12")
			}
			// The agent dies with its machine, so the answer may be lost.
			_, _ = g.Shell(ctx, "poweroff")
			if st, err := p.Wait(ctx); err != nil || st.Code != 0 {
				t.Errorf("after poweroff: %+v, %v\n%s", st, err, con)
			}
			t.Logf("off after %.1f s", time.Since(con.from).Seconds())
		})
	}
}
