package connsync

import (
	"net/netip"
	"reflect"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

// withNAT6 returns services(), and one of VS/NAT with two IPv6 VIPs: its replies have several frontends.
func withNAT6() []balancer.Service {
	six := realserver(0, method.NAT)
	six.Address, six.Port = netip.MustParseAddr("2001:db8::11:9"), 8080
	return append(services(), balancer.Service{Name: "nat6", Protocol: packet.ProtoTCP, Scheduler: "rr",
		VIPs:  []netip.Addr{vip6, netip.MustParseAddr("2001:db8::81")},
		Ports: []balancer.PortRange{{First: 90, Last: 90}}, Realservers: []balancer.Realserver{six}})
}

// hostile are records that name what does not belong together.
func hostile() map[string]Record {
	good := Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
		Real: at("10.0.11.2:80"), Timeout: 900, Options: Options{Service: "web"}}
	change := func(f func(r *Record)) Record {
		r := good
		f(&r)
		return r
	}
	return map[string]Record{
		"a router's address": change(func(r *Record) { r.Virtual = at("10.0.2.1:80") }),
		"another protocol":   change(func(r *Record) { r.Protocol, r.State = 17, 0 }),
		"IPv4 to VS/NAT of IPv6": change(func(r *Record) {
			r.Service, r.Real = "nat6", at("[2001:db8::11:9]:8080")
		}),
		"IPv6 to VS/NAT of IPv4": change(func(r *Record) {
			r.Client, r.Virtual, r.Real = at("[2001:db8::1]:1"), at("[2001:db8::80]:82"), at("10.0.11.5:8080")
			r.Service = "nat"
		}),
	}
}

// TestHostileRecords: no record makes an entry whose VIP, protocol or family is not its service's, whatever options it
// has. An entry keeps routes to its VIP.
func TestHostileRecords(t *testing.T) {
	for mode, key := range modes {
		w := newNetwork(t, 1, 1024, key)
		d := w.directors[0]
		if err := d.balancer.Apply(balancer.Config{Services: withNAT6()}); err != nil {
			t.Fatal(err)
		}
		for name, r := range hostile() {
			d.takeRecords(appendRecord(nil, &r), 1, conntab.Ordered, w.now)
			for c := range d.table.All(w.now) {
				t.Errorf("%s, %s: entry %+v", mode, name, c)
			}
		}
	}
}

// FuzzDatagram: no datagram crashes a director of either mode, nor makes an entry that is no VIP's. Each record that
// the parser accepts keeps its meaning when it is written and parsed again.
func FuzzDatagram(f *testing.F) {
	list := []Record{
		{Protocol: 6, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"), Real: at("10.0.11.2:80")},
		{Protocol: 6, State: 1, Client: at("[2001:db8::1]:1"), Virtual: at("[2001:db8::80]:90"),
			Real: at("[2001:db8::11:9]:8080"), Timeout: 900},
		{Protocol: 17, Client: at("[2001:db8::1]:1"), Virtual: at("[2001:db8::80]:80"), Real: at("10.0.11.2:80"),
			Options: Options{HasLeft: true, Hearsay: true, Service: "web"}},
		{Protocol: 6, State: 1, Client: at("192.0.2.1:0"), Virtual: at("198.51.100.80:443"), Real: at("10.0.11.2:443"),
			Timeout: 360, Flags: FlagTemplate},
	}
	for _, r := range hostile() {
		list = append(list, r)
	}
	for _, r := range list {
		b := appendRecord(make([]byte, headerSize), &r)
		putHeader(b, 0, 1)
		f.Add(b)
	}
	all := map[string]*director{}
	var w *network
	for mode, key := range modes {
		w = newNetwork(f, 1, 1024, key)
		all[mode] = w.directors[0]
		if err := all[mode].balancer.Apply(balancer.Config{Services: withNAT6()}); err != nil {
			f.Fatal(err)
		}
	}
	peer := netip.MustParseAddr("10.0.2.66")
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, fault := parseHeader(b)
		all["ipvs"].take(b, peer, w.now)
		if fault != Accepted {
			return
		}
		all["vstun"].takeRecords(rest, h.count, conntab.Ordered, w.now)
		for _, d := range all {
			for c := range d.table.All(w.now) {
				if conn, ok := d.balancer.Snapshot().Connection(c); !ok || !c.Template && c.Flow.Dst != vip &&
					c.Flow.Dst != vip6 && c.Flow.Dst != netip.MustParseAddr("2001:db8::81") {
					t.Errorf("entry %+v", conn)
				}
			}
		}
		eachRecord(rest, h.count, true, func(r *Record) {
			var back Record
			if _, fault := parseRecord(appendRecord(nil, r), &back, true); fault != Accepted ||
				!reflect.DeepEqual(*r, back) {
				t.Errorf("%+v\nbecomes %v %+v", *r, fault, back)
			}
		}, func(Fault) {})
	})
}
