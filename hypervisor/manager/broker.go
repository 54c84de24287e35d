package manager

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/internal/broker"
)

// brokerPause comes before each answer: a guest that connects to the host over and over costs no more than that.
const brokerPause = time.Millisecond

// serveBroker gives a VMM, which was started with def, the connections that it asks for, until ctx ends or it has gone.
func (g *guest) serveBroker(ctx context.Context, c *net.UnixConn, def *store.Guest) {
	err := broker.Serve(ctx, c, func(ctx context.Context, r broker.Request) (*os.File, error) {
		select {
		case <-time.After(brokerPause):
		case <-ctx.Done():
		}
		return connect(&def.Definition, r)
	})
	if err != nil {
		g.log.Error("its VMM does not ask as VMMs do, and gets no more connections", "err", err)
	}
}

// connect makes the connection that a guest asks for, to what its definition names and to nothing else.
func connect(def *definition.Definition, r broker.Request) (*os.File, error) {
	switch r.What {
	case broker.Vsock:
		if def.Vsock != nil {
			return vmm.Connect(def.Vsock.Path + "_" + strconv.FormatUint(uint64(r.Port), 10))
		}
	case broker.NIC:
		for _, n := range def.NICs {
			if n.Name == r.Name && n.Socket != "" {
				return vmm.Connect(n.Socket)
			}
		}
	case broker.Disk:
		for _, k := range def.Disks {
			if k.Name == r.Name && k.Socket != "" {
				return vmm.Connect(k.Socket)
			}
		}
	}
	return nil, fmt.Errorf("nothing of the guest's: %.20q %.80q", r.What, r.Name)
}

// offerBroker gives a VMM that another manager has started a broker, in place of that one's. A VMM that needs none refuses it.
func (g *guest) offerBroker(ctx context.Context, c *control.Client, def *store.Guest) {
	if def == nil {
		return
	}
	serve, ask, err := broker.Pair()
	if err != nil {
		g.log.Error("broker", "err", err)
		return
	}
	defer ask.Close()
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := c.Call(limited, "broker", nil, nil, nil, ask); err != nil {
		serve.Close()
		return
	}
	g.spawn(func() { g.serveBroker(ctx, serve, def) })
}
