package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// Tools builds what a notebook needs to be a Host, for notebook.Config.Tools. vmm is the lodge-vmm to use.
func Tools(ctx context.Context, b *image.Builder, vmm string) (map[string]string, error) {
	netstack, _, err := b.GoProgram(ctx, "./e2e/netstack", "amd64")
	if err != nil {
		return nil, err
	}
	return map[string]string{"bin/lodge-vmm": vmm, "bin/netstack": netstack}, nil
}

// InNotebook returns the notebook nb as a Host. It was started with Tools.
func InNotebook(nb *notebook.Notebook) *Host {
	return &Host{
		Client: nb.Client, VMM: "/tools/bin/lodge-vmm", Netstack: "/tools/bin/netstack", Agent: "/bin/agent", Firmware: seabios, Run: "/run",
		Of: func(arch string) BootSet {
			dir := "/guests/" + arch
			set := BootSet{Kernel: dir + "/" + kernelOf(arch), Initrd: dir + "/initrd", Disk: "/disk/" + arch}
			if arch == "i386" {
				set.Cmdline = notebook.I386Cmdline
			}
			return set
		},
	}
}

// seabios is where Debian's package of that name has it.
const seabios = "/usr/share/seabios/bios-256k.bin"

// kernelOf returns the form in which an architecture's kernel starts: Debian's 686 kernel has no PVH entry and comes as a
// bzImage, which unpacks itself in the guest.
func kernelOf(arch string) string {
	if arch == "i386" {
		return "vmlinuz"
	}
	return "vmlinux"
}

// Local returns this machine as a Host, with copies of the guests' disks in a directory that close removes.
func Local(ctx context.Context, b *image.Builder, vmm string) (h *Host, closeHost func() error, err error) {
	sets := make(map[string]BootSet)
	dir, err := os.MkdirTemp("", "lodge-run-")
	if err != nil {
		return nil, nil, err
	}
	cleanUp := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, cleanUp())
		}
	}()
	for _, a := range []image.Arch{image.AMD64(), image.I386()} {
		g, err := b.Guest(ctx, a)
		if err != nil {
			return nil, nil, err
		}
		disk := filepath.Join(dir, a.Name+".img")
		if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", g.Disk, disk).CombinedOutput(); err != nil {
			return nil, nil, fmt.Errorf("copy %s: %w: %s", g.Disk, err, out)
		}
		kernel := filepath.Join(filepath.Dir(g.Kernel.VMLinux), kernelOf(a.Name))
		sets[a.Name] = BootSet{Kernel: kernel, Initrd: g.Initrd, Disk: disk}
	}
	agent, _, err := b.GoProgram(ctx, "./e2e/agent", "amd64")
	if err != nil {
		return nil, nil, err
	}
	netstack, _, err := b.GoProgram(ctx, "./e2e/netstack", "amd64")
	if err != nil {
		return nil, nil, err
	}
	client, err := localAgent(ctx)
	if err != nil {
		return nil, nil, err
	}
	h = &Host{Client: client, VMM: vmm, Netstack: netstack, Agent: agent, Firmware: seabios, Run: dir, Of: func(arch string) BootSet { return sets[arch] }}
	return h, func() error { return errors.Join(client.Close(), cleanUp()) }, nil
}

// localAgent serves commands of this process in this process.
func localAgent(ctx context.Context) (*rpc.Client, error) {
	toServer, fromClient := io.Pipe()
	toClient, fromServer := io.Pipe()
	go func() {
		_ = (&rpc.Server{}).Serve(context.WithoutCancel(ctx), pipe{toServer, fromServer}) // ends with the client's Close
		fromServer.Close()
	}()
	return rpc.NewClient(ctx, pipe{toClient, fromClient})
}

// pipe is one end of a connection made of two pipes.
type pipe struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (p pipe) Write(b []byte) (int, error) { return p.w.Write(b) }

func (p pipe) Close() error { return errors.Join(p.PipeReader.Close(), p.w.Close()) }
