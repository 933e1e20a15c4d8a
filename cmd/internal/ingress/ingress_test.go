package ingress

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vstun/routing/query"
)

// program notes the devices that it is attached to. broken is a device that refuses it.
type program struct {
	on     []int
	broken int
}

func (p *program) Attach(device int) error {
	if device == p.broken {
		return errors.New("refused")
	}
	p.on = append(p.on, device)
	return nil
}

func (p *program) Detach(device int) error {
	p.on = slices.DeleteFunc(p.on, func(d int) bool { return d == device })
	return nil
}

func (p *program) Hook() string { return "TCX" }

func device(name string, index int) query.Device {
	return query.Device{Name: name, Index: index, Up: true, Ethernet: true, Kind: "device"}
}

func TestSelect(t *testing.T) {
	with := func(d query.Device, change func(*query.Device)) query.Device { change(&d); return d }
	address := []netip.Prefix{netip.MustParsePrefix("10.0.2.2/24")}
	all := []query.Device{
		device("eth0", 1),
		with(device("down", 2), func(d *query.Device) { d.Up = false }),
		with(device("port", 3), func(d *query.Device) { d.Master = 9 }),
		with(device("lo", 4), func(d *query.Device) { d.Loopback = true }),
		with(device("wg0", 5), func(d *query.Device) { d.Ethernet = false }),
		with(device("cali1", 6), func(d *query.Device) {
			d.Kind, d.Addrs = "veth", []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}
		}),
		with(device("eth1", 7), func(d *query.Device) { d.Kind, d.Addrs = "veth", address }),
		with(device("tap0", 8), func(d *query.Device) { d.Kind = "tuntap" }),
		with(device("br0", 9), func(d *query.Device) { d.Kind = "bridge" }),
		with(device("red", 10), func(d *query.Device) { d.Kind = "vrf" }),
		with(device("eth2", 11), func(d *query.Device) { d.Master = 10 }),
		with(device("eth3", 12), func(d *query.Device) { d.Master, d.Up = 10, false }),
		with(device("cali2", 13), func(d *query.Device) { d.Master, d.Kind = 10, "veth" }),
	}
	names := func(list []query.Device) (names []string) {
		for _, d := range list {
			names = append(names, d.Name)
		}
		return names
	}
	if got, want := names(Select(all, nil)), []string{"eth0", "eth1", "br0"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := names(Select(all, []string{"cali1", "down", "none"})), []string{"cali1"}; !slices.Equal(got, want) {
		t.Errorf("by name: %v, want %v", got, want)
	}
	const reason = "eth2 is a port of VRF red, and fast_path_devices does not name it"
	if got := LeftOut(all, nil); !slices.Equal(got, []string{reason}) {
		t.Errorf("left out: %q, want %q", got, reason)
	}
	want := []string{"down is down", "there is no device none, which fast_path_devices names"}
	if got := LeftOut(all, []string{"cali1", "down", "none"}); !slices.Equal(got, want) {
		t.Errorf("left out by name: %q, want %q", got, want)
	}
	by := []string{"eth2"}
	if got, left := names(Select(all, by)), LeftOut(all, by); !slices.Equal(got, by) || len(left) > 0 {
		t.Errorf("%v by name: %v; left out: %q", by, got, left)
	}
}

// TestFollow: the program is at the devices of the last call. An error is reported once, and the device tried again.
func TestFollow(t *testing.T) {
	p := &program{broken: 2}
	d := New(p)
	if err := d.Follow([]query.Device{device("eth0", 1), device("eth1", 2)}); err == nil || err.Error() != "refused" {
		t.Errorf("error %v", err)
	}
	if err := d.Follow([]query.Device{device("eth0", 1), device("eth1", 2)}); err != nil {
		t.Errorf("the same error again: %v", err)
	}
	if got := d.Faults(); !slices.Equal(got, []string{"refused"}) {
		t.Errorf("faults %q", got)
	}
	p.broken = 0
	if err := d.Follow([]query.Device{device("eth1", 2)}); err != nil {
		t.Error(err)
	}
	if got := d.Faults(); len(got) > 0 {
		t.Errorf("faults %q, and there is none", got)
	}
	if !slices.Equal(p.on, []int{2}) || !slices.Equal(d.Names(), []string{"eth1"}) {
		t.Errorf("on %v, names %v", p.on, d.Names())
	}
}

// TestPoliciesLog: the log has when IPsec policies come and go, and nothing in between.
func TestPoliciesLog(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	p := &Policies{}
	for _, step := range []struct {
		has  bool
		want string
	}{
		{false, ""}, {true, "there is no fast path"}, {true, ""}, {false, "the fast path goes on"}, {false, ""},
	} {
		out.Reset()
		p.Log(log, step.has)
		if got := out.String(); (got == "") != (step.want == "") || !strings.Contains(got, step.want) {
			t.Errorf("%v: %q, want %q", step.has, got, step.want)
		}
	}
}

// TestLog: the log has all devices at the start, and later those that are added and lost. It has nothing in between.
func TestLog(t *testing.T) {
	var out strings.Builder
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	d := New(&program{})
	eth0, eth1, eth2 := device("eth0", 1), device("eth1", 2), device("eth2", 3)
	anew := eth2
	anew.Removals = 1
	for _, step := range []struct {
		devices []query.Device
		want    string
	}{
		{nil, ""},
		{[]query.Device{eth1, eth0}, `level=INFO msg="fast path attached" devices="[eth0 eth1]" hook=TCX`},
		{[]query.Device{eth0, eth1}, ""},
		{[]query.Device{eth0, eth1, eth2}, `level=INFO msg="fast path attached" devices=[eth2] hook=TCX`},
		{[]query.Device{eth2}, `level=INFO msg="fast path detached" devices="[eth0 eth1]"`},
		{[]query.Device{eth2}, ""},
		{[]query.Device{anew}, `level=INFO msg="fast path detached" devices=[eth2]` + "\n" +
			`level=INFO msg="fast path attached" devices=[eth2] hook=TCX`},
	} {
		out.Reset()
		if err := d.Follow(step.devices); err != nil {
			t.Fatal(err)
		}
		if d.Log(log); strings.TrimSpace(out.String()) != step.want {
			t.Errorf("devices %v: %q, want %q", step.devices, out.String(), step.want)
		}
	}
}

// TestFollowAnew: a device that was made anew with the same index gets the program again.
func TestFollowAnew(t *testing.T) {
	p := &program{}
	d := New(p)
	anew := device("eth0", 1)
	for n := range 3 {
		p.on = nil // gone with the device
		anew.Removals = n
		for range 2 {
			if err := d.Follow([]query.Device{anew}); err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(p.on, []int{1}) {
			t.Errorf("device %d: on %v", n, p.on)
		}
	}
}
