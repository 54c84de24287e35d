package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/notebook"
)

const (
	notebookAgent = "/bin/agent"
	guestAgent    = "/usr/lib/lodge/agent"
	sinkPort      = "5001"
)

// transfers are the figures of a guest's disk and network. They are rates, not counts of instructions: where those are
// counted there is one processor, and QEMU may never come out of two idle guests.
func transfers(p *pair) []figure {
	of := func(name string, args ...string) figure {
		return figure{
			name: name + ", in the notebook", unit: "MB/s", higher: true, goal: goal{ratio: 1}, runs: 9, peerName: "QEMU microvm",
			prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
				if p.nb == nil {
					if err := p.start(ctx); err != nil {
						err = errors.Join(err, p.close())
						p.nb = nil
						return nil, nil, nil, err
					}
				}
				return p.measurement(&p.ours, args), p.measurement(&p.peer, args), nil, nil
			},
		}
	}
	return []figure{
		of("virtio-blk 4 KiB random reads", "blkread", "-size", "4096", "-random", "-count", "4000", "-depth", "4", "/dev/vdb"),
		of("virtio-blk 1 MiB sequential reads", "blkread", "-size", "1048576", "-count", "512", "-depth", "2", "/dev/vdb"),
		of("virtio-net TCP, guest to notebook", "throughput", "-send", "-bytes", "134217728", "tcp", "SINK"),
		of("virtio-net TCP, notebook to guest", "throughput", "-bytes", "134217728", "tcp", "SINK"),
	}
}

// pair is a notebook with the same guest twice, in our VMM and in the peer's: each idles while the other is measured. It
// is started by the first figure that needs it.
type pair struct {
	vmm        string
	nb         *notebook.Notebook
	ours, peer running
}

// running is a guest that is up.
type running struct {
	subnet string // three bytes of its network, in which the notebook is .1
	agent  *rpc.Client
}

func (p *pair) close() error {
	if p.nb == nil {
		return nil
	}
	return p.nb.Close()
}

// start starts the notebook, what serves the guests, and the guests. Both read one file, which lies in memory.
func (p *pair) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, notebookLimit)
	defer cancel()
	// Both guests write to their roots: the peer's needs one of its own.
	if p.nb, err = startNotebook(ctx, p.vmm, false, notebook.Disk{Name: "peer"}); err != nil {
		return err
	}
	p.ours, p.peer = running{subnet: "10.8.1"}, running{subnet: "10.8.2"}
	script := "mkdir /run/bench && mount -t tmpfs bench /run/bench && " + notebookAgent + " fill /run/bench/data 134217728 1"
	for i, r := range []running{p.ours, p.peer} {
		script += fmt.Sprintf(" && tunctl -t bench%d && ifconfig bench%d %s.1 netmask 255.255.255.0 up", i, i, r.subnet)
	}
	if _, err := p.nb.Shell(ctx, script); err != nil {
		return err
	}
	if _, err := p.nb.Start(rpc.Cmd{Args: []string{notebookAgent, "sink", "tcp", "0.0.0.0:" + sinkPort}}); err != nil {
		return err
	}

	// One after the other: each start is heavy.
	definition := ourGuest("bench", "/disk/amd64", `[[disk]]
name = "data"
path = "/run/bench/data"
readonly = true
[[nic]]
name = "lan"
tap = "bench0"
[vsock]
cid = 3
path = "/run/bench/vsock"
`)
	if err := p.nb.Put(ctx, strings.NewReader(definition), "/run/bench/guest.toml", 0o644); err != nil {
		return err
	}
	if err := p.ours.run(ctx, p.nb, "/run/bench/vsock", 1024, "lodge-vmm", "run", "/run/bench/guest.toml"); err != nil {
		return err
	}
	return p.peer.run(ctx, p.nb, "/run/bench/agent", 0, peersGuest("/disk/peer",
		"-object", "iothread,id=io", "-drive", "if=none,id=data,format=raw,readonly=on,aio=io_uring,file=/run/bench/data",
		"-device", "virtio-blk-pci,drive=data,iothread=io,disable-legacy=on",
		"-netdev", "tap,id=lan,ifname=bench1,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=lan,disable-legacy=on,romfile=",
		"-device", "virtio-serial-pci,disable-legacy=on", "-chardev", "socket,id=agent,path=/run/bench/agent,server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=agent")...)
}

// run starts a guest by its VMM's command line and waits until it has its address.
func (r *running) run(ctx context.Context, nb *notebook.Notebook, socket string, port uint32, args ...string) error {
	var said strings.Builder
	vmm, err := nb.Start(rpc.Cmd{Args: args, Stdout: &said, Stderr: &said})
	if err != nil {
		return err
	}
	up, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-vmm.Done():
			cancel(errors.New("it has ended"))
		case <-up.Done():
		}
	}()
	r.agent, err = nb.GuestAgent(up, socket, port)
	if err == nil {
		// The client of DHCP, which nobody serves here, must not come between.
		_, err = r.agent.Shell(up, fmt.Sprintf("killall udhcpc; ip addr add %s.2/24 dev eth0 && ip link set eth0 up", r.subnet))
	}
	if err != nil {
		cancel(err)
		_ = vmm.Kill()
		_, _ = vmm.Wait(ctx) // what it said is whole now
		return fmt.Errorf("%s: %w: %w\n%s", args[0], context.Cause(up), err, &said)
	}
	return nil
}

// measurement returns a run of the guest's agent with args, in which SINK stands for the sink's address. The agent prints
// a rate.
func (p *pair) measurement(r *running, args []string) measurement {
	return func(ctx context.Context) (float64, error) {
		line := []string{guestAgent}
		for _, a := range args {
			if a == "SINK" {
				a = r.subnet + ".1:" + sinkPort
			}
			line = append(line, a)
		}
		var rate struct{ MBps float64 }
		if err := output(ctx, r.agent, &rate, line...); err != nil {
			select {
			case <-p.nb.Done():
				err = fmt.Errorf("%w: the notebook has ended: %s", err, p.nb.Postmortem())
			default:
			}
			return 0, err
		}
		return rate.MBps, nil
	}
}
