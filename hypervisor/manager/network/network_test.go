package network

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pelletier/go-toml/v2"
)

const good = `name = "office"
kind = "user"
subnet = "10.77.0.0/24"
dns = ["9.9.9.9"]
peers = true

[[forward]]
listen = "127.0.0.1:8080"
guest = "web"
port = 80

[[rule]]
guest = "web"
direction = "out"
action = "deny"
protocol = "tcp"
cidr = "192.168.0.0/16"
ports = "1-1024"
`

var byValue = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})}

func TestParse(t *testing.T) {
	n, err := Parse("office.toml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := &Network{
		Name: "office", Kind: User, Subnet: netip.MustParsePrefix("10.77.0.0/24"), DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Peers: true,
		Forwards: []Forward{{TCP, netip.MustParseAddrPort("127.0.0.1:8080"), "web", 80}},
		Rules: []Rule{{Guest: "web", Direction: Out, Action: Deny, Protocol: TCP,
			CIDR: netip.MustParsePrefix("192.168.0.0/16"), Ports: Ports{1, 1024}}},
	}
	if d := cmp.Diff(want, n, byValue); d != "" {
		t.Error(d)
	}
	b, err := toml.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Parse("again", b); err != nil || !cmp.Equal(n, again, byValue) {
		t.Errorf("%v\n%s", err, b)
	}
	if b, err = json.Marshal(n); err != nil {
		t.Fatal(err)
	}
	again := &Network{}
	if err := json.Unmarshal(b, again); err != nil || !cmp.Equal(n, again, byValue) {
		t.Errorf("%v\n%s", err, b)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		{"name = \"Office\"\nkind = \"user\"\nsubnet = \"10.0.0.0/24\"", `1: name "Office"`},
		{"name = \"much-too-long\"\nkind = \"user\"\nsubnet = \"10.0.0.0/24\"", `1: name "much`},
		{"name = \"a\"\nkind = \"tunnel\"", `2: kind "tunnel"`},
		{"name = \"a\"\nkind = \"user\"", `no subnet`},
		{"name = \"a\"\nkind = \"user\"\nsubnet = \"10.0.0.0/30\"", `3: subnet 10.0.0.0/30`},
		{"name = \"a\"\nkind = \"user\"\nsubnet = \"fd00::/24\"", `3: subnet fd00::/24`},
		{"name = \"a\"\nkind = \"user\"\nsubnet = \"127.0.0.0/16\"", `3: subnet 127.0.0.0/16`},
		{"name = \"a\"\nkind = \"bridged\"\nuplink = \"eth0\"\nsubnet = \"10.0.0.0/24\"", `4: subnet: a bridged`},
		{"name = \"a\"\nkind = \"bridged\"", `uplink belongs`},
		{"name = \"a\"\nkind = \"bridged\"\nuplink = \"../eth\"", `3: uplink "../eth"`},
		{"name = \"a\"\nkind = \"isolated\"\nsubnet = \"10.0.0.0/24\"\nhost = true", `4: host belongs`},
		{"name = \"a\"\nkind = \"isolated\"\nsubnet = \"10.0.0.0/24\"\ndns = [\"9.9.9.9\"]", `4: dns belongs`},
		{good + "[[rule]]\ndirection = \"up\"\naction = \"deny\"\n", `20: rule: direction "up"`},
		{good + "[[rule]]\ndirection = \"in\"\naction = \"deny\"\nports = \"1\"\n", `22: rule: ports belong`},
		{good + "[[rule]]\ndirection = \"in\"\naction = \"deny\"\nports = \"9-1\"\n", `22: rule.ports`},
		{good + "[[forward]]\nlisten = \"0.0.0.0:8080\"\nguest = \"x\"\nport = 1\n", `20: forward: tcp 0.0.0.0:8080 is used twice`},
		{good + "[[forward]]\nlisten = \"0.0.0.0:81\"\nguest = \"../x\"\nport = 1\n", `21: forward: guest "../x"`},
		{good + "colour = 1", `unknown key`},
		{strings.Replace(good, "user", "nat", 1), `on a nat network`},
	}
	for _, tt := range tests {
		if _, err := Parse("f.toml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n%v, want %q", tt.text, err, tt.want)
		}
	}
}

// The same card gets the same address, all get different ones, and in the end there is none left.
func TestAssign(t *testing.T) {
	n := &Network{Name: "a", Kind: User, Subnet: netip.MustParsePrefix("10.0.0.0/28")}
	taken := map[netip.Addr]bool{}
	var guests []Guest
	for i := range byte(13) {
		mac := MAC{0x52, 0, 0, 0, 0, i}
		a, err := n.Assign(mac, func(a netip.Addr) bool { return taken[a] })
		if err != nil {
			t.Fatal(err)
		}
		taken[a] = true
		guests = append(guests, Guest{string(rune('a' + i)), mac, a})
	}
	if err := n.CheckGuests(guests); err != nil {
		t.Error(err)
	}
	if _, err := n.Assign(MAC{2}, func(a netip.Addr) bool { return taken[a] }); !errors.Is(err, ErrFull) {
		t.Errorf("one more than there are: %v", err)
	}
	first, _ := n.Assign(guests[0].MAC, nil)
	if first != guests[0].Address {
		t.Errorf("%v, and then %v", guests[0].Address, first)
	}
}

func TestCheckGuests(t *testing.T) {
	n := &Network{Name: "a", Kind: User, Subnet: netip.MustParsePrefix("10.0.0.0/24")}
	ok := Guest{"g", MAC{2, 1}, netip.MustParseAddr("10.0.0.9")}
	tests := []struct {
		other Guest
		want  string
	}{
		{Guest{"h", MAC{2, 2}, netip.MustParseAddr("10.0.0.8")}, ""},
		{Guest{"g", MAC{2, 2}, netip.MustParseAddr("10.0.0.8")}, "twice"},
		{Guest{"h", MAC{2, 1}, netip.MustParseAddr("10.0.0.8")}, "mac"},
		{Guest{"h", GatewayMAC, netip.MustParseAddr("10.0.0.8")}, "gateway"},
		{Guest{"h", MAC{1, 2}, netip.MustParseAddr("10.0.0.8")}, "unicast"},
		{Guest{"h", MAC{2, 2}, netip.MustParseAddr("10.0.0.9")}, "address"},
		{Guest{"h", MAC{2, 2}, netip.MustParseAddr("10.0.0.1")}, "gateway"},
		{Guest{"h", MAC{2, 2}, netip.MustParseAddr("10.0.0.255")}, "not one of"},
		{Guest{"h", MAC{2, 2}, netip.MustParseAddr("10.0.1.8")}, "not one of"},
		{Guest{"../h", MAC{2, 2}, netip.MustParseAddr("10.0.0.8")}, "name"},
	}
	for _, tt := range tests {
		err := n.CheckGuests([]Guest{ok, tt.other})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.other, err, tt.want)
		}
	}
}

// What is read is as it is written, and whatever is read is valid.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("name = \"a\"\nkind = \"bridged\"\nuplink = \"eth0\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Parse("fuzz", b)
		if err != nil {
			return
		}
		text, err := toml.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("again", text)
		if err != nil || !cmp.Equal(n, again, byValue, cmpopts.EquateEmpty()) {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
