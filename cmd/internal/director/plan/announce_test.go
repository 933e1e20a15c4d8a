package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// ethernet is a device with neighbours.
func ethernet(name string, index int, addrs ...string) query.Device {
	d := query.Device{Name: name, Index: index, Up: true, Running: true, Neighbours: true,
		MAC: [6]byte{2, 0, 0, 0, 0, byte(index)}}
	for _, a := range addrs {
		d.Addrs = append(d.Addrs, netip.MustParsePrefix(a))
	}
	return d
}

// described writes devices as "eth0: 10.0.2.80 (10.0.2.81)", with former addresses in brackets.
func described(all []neigh.Device) string {
	var lines []string
	for _, d := range all {
		line := d.Name + ":"
		for _, a := range d.Addrs {
			line += fmt.Sprintf(" %v", a)
		}
		for _, a := range d.Former {
			line += fmt.Sprintf(" (%v)", a)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

// TestAnnounceOwn: other devices of the host are not another host, also those that announce nothing.
func TestAnnounceOwn(t *testing.T) {
	bare, tun := ethernet("eth2", 1), query.Device{Name: "wg0", Index: 9, Addrs: ethernet("", 0, "10.9.0.1/24").Addrs}
	in := Inputs{Config: &config.Director{}, Devices: []query.Device{ethernet("eth1", 3, "10.0.2.3/24"), tun, bare,
		ethernet("eth0", 2, "10.0.2.2/24")}}
	in.Config.Announce.Devices = []string{"eth0"}
	in.Config.Services = []config.Service{{VIPs: []netip.Addr{netip.MustParseAddr("10.0.2.80")}}}
	was := Announce(in)
	want := []neigh.MAC{{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 3}}
	if len(was) != 1 || !slices.Equal(was[0].Own, want) {
		t.Fatalf("%+v, want own %v", was, want)
	}
	in.Devices[0].MAC[5] = 7
	if neigh.EqualDevices(was, Announce(in)) {
		t.Error("another MAC address of the host changes nothing")
	}
}

// TestAnnounce: which VIPs are announced on which devices.
func TestAnnounce(t *testing.T) {
	lan := ethernet("eth0", 2, "10.0.2.2/24", "fd00:0:2::2/64", "fe80::1/64")
	for _, c := range []struct {
		name    string
		vips    string
		devices []query.Device
		change  func(in *Inputs)
		want    string
	}{
		{"in the subnet", "10.0.2.80 fd00:0:2::80", []query.Device{lan}, nil, "eth0: 10.0.2.80 fd00:0:2::80"},
		{"in no subnet", "198.51.100.80 2001:db8::80", []query.Device{lan}, nil, ""},
		{"one of them", "10.0.2.80 198.51.100.80", []query.Device{lan}, nil, "eth0: 10.0.2.80"},
		{"on two devices", "10.0.2.80", []query.Device{lan, ethernet("eth1", 3, "10.0.2.3/24")}, nil,
			"eth0: 10.0.2.80; eth1: 10.0.2.80"},
		{"on the named device", "10.0.2.80", []query.Device{lan, ethernet("eth1", 3, "10.0.2.3/24")},
			func(in *Inputs) { in.Config.Announce.Devices = []string{"eth1", "eth7"} }, "eth1: 10.0.2.80"},
		{"off", "10.0.2.80", []query.Device{lan}, func(in *Inputs) { in.Config.Announce.Off = true }, ""},
		{"an address alone", "10.0.2.80", []query.Device{ethernet("eth0", 2, "10.0.2.2/32")}, nil, ""},
		{"the ends of a subnet", "10.0.2.0 10.0.2.1 10.0.2.254 10.0.2.255", []query.Device{lan}, nil,
			"eth0: 10.0.2.1 10.0.2.254"},
		{"a subnet of two", "10.0.2.3", []query.Device{ethernet("eth0", 2, "10.0.2.2/31")}, nil, "eth0: 10.0.2.3"},
		{"the device's own address", "10.0.2.2", []query.Device{lan}, nil, ""},
		{"without a link", "10.0.2.80", []query.Device{lan}, func(in *Inputs) { in.Devices[0].Running = false }, ""},
		{"without neighbours", "10.0.2.80", []query.Device{lan}, func(in *Inputs) { in.Devices[0].Neighbours = false },
			""},
		{"the director's own devices", "10.0.2.80", []query.Device{ethernet("vs0", 8, "10.0.2.2/24"),
			ethernet("vs0-local", 9, "10.0.2.2/24")}, nil, ""},
		{"retired", "10.0.2.80", []query.Device{lan}, func(in *Inputs) {
			in.RetiredVIPs = []netip.Addr{netip.MustParseAddr("10.0.2.81"), netip.MustParseAddr("198.51.100.81")}
		}, "eth0: 10.0.2.80 (10.0.2.81)"},
	} {
		in := Inputs{Config: running(), Devices: append([]query.Device(nil), c.devices...)}
		var vips []netip.Addr
		for _, a := range strings.Fields(c.vips) {
			vips = append(vips, netip.MustParseAddr(a))
		}
		in.Config.Services = []config.Service{{Name: "a", VIPs: vips}, {Name: "b", VIPs: vips}}
		if c.change != nil {
			c.change(&in)
		}
		if got := described(Announce(in)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestAdded: the VIPs to ask other hosts for are those that are new on a device.
func TestAdded(t *testing.T) {
	list := func(addrs string) (all []netip.Addr) {
		for _, a := range strings.Fields(addrs) {
			all = append(all, netip.MustParseAddr(a))
		}
		return all
	}
	was := []neigh.Device{{Name: "eth0", Index: 2, Addrs: list("10.0.2.80 10.0.2.81"), Former: list("10.0.2.82")}}
	is := []neigh.Device{
		{Name: "eth0", Index: 2, Addrs: list("10.0.2.80 10.0.2.82"), Former: list("10.0.2.81"), Losses: 1},
		{Name: "eth1", Index: 3, Addrs: list("10.0.2.80")},
		{Name: "eth2", Index: 4, Former: list("10.0.2.80")},
	}
	if got, want := described(Added(was, is)), "eth0: 10.0.2.82; eth1: 10.0.2.80"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := described(Added(is, is)); got != "" {
		t.Errorf("nothing has changed, and got %q", got)
	}
	if len(was[0].Addrs) != 2 {
		t.Errorf("the list before is changed: %v", was)
	}
}
