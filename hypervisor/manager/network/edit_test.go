package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const commented = `# Ours.
name = "office"
kind = "user"
subnet = "10.77.0.0/24" # not the company's

# The site.
[[forward]]
listen = "127.0.0.1:8080"
guest = "web"
port = 80

# The printer's network.
[[rule]]
direction = "out"
action = "deny"
cidr = "192.168.0.0/16"

[[rule]]
direction = "in"
action = "deny"
# Nothing follows.
`

func TestEdit(t *testing.T) {
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ssh := Forward{TCP, netip.MustParseAddrPort("127.0.0.1:2222"), "web", 22}
	web := Rule{Guest: "web", Direction: Out, Action: Allow, Protocol: TCP, Ports: Ports{80, 80}}
	b := must(AddForward([]byte(commented), ssh))
	b = must(AddRule(b, 0, web))
	b = must(AddRule(b, 3, web))
	want := strings.Replace(commented, "port = 80\n", `port = 80

[[forward]]
protocol = 'tcp'
listen = '127.0.0.1:2222'
guest = 'web'
port = 22
`, 1)
	rule := `[[rule]]
guest = 'web'
direction = 'out'
action = 'allow'
protocol = 'tcp'
ports = '80'
`
	want = strings.Replace(want, "[[rule]]\n", rule+"\n[[rule]]\n", 1)
	want = strings.Replace(want, "# Nothing", "\n"+rule+"# Nothing", 1)
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Error(d)
	}
	b = must(RemoveRule(b, 3))
	b = must(RemoveRule(b, 0))
	b = must(RemoveForward(b, ssh))
	if n, err := Parse("n", b); err != nil || len(n.Rules) != 2 || len(n.Forwards) != 1 || !strings.Contains(string(b), "# The printer's network.\n") {
		t.Errorf("%v\n%s", err, b)
	}
	// What is not there, what cannot be, and what is written in another way.
	if _, err := RemoveForward(b, ssh); !errors.Is(err, ErrNoForward) {
		t.Error(err)
	}
	for _, at := range []int{-1, 3} {
		if _, err := AddRule(b, at, web); !errors.Is(err, ErrNoRule) {
			t.Error(at, err)
		}
	}
	if _, err := RemoveRule(b, 2); !errors.Is(err, ErrNoRule) {
		t.Error(err)
	}
	if _, err := AddForward(b, Forward{TCP, ssh.Listen, "../web", 22}); err == nil || !strings.Contains(err.Error(), "name of a guest") {
		t.Error(err)
	}
	inline := []byte("name = \"a\"\nkind = \"user\"\nsubnet = \"10.0.0.0/24\"\nforward = [{ listen = \"127.0.0.1:80\", guest = \"g\", port = 80 }]\n")
	if _, err := AddForward(inline, ssh); err == nil || !strings.Contains(err.Error(), "edit it by hand") {
		t.Error(err)
	}
	if _, err := RemoveForward(inline, Forward{Protocol: TCP, Listen: netip.MustParseAddrPort("127.0.0.1:80")}); err == nil || !strings.Contains(err.Error(), "edit it by hand") {
		t.Error(err)
	}
}
