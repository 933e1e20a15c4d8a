package director

import (
	"net/netip"
	"net/url"
	"slices"
	"testing"

	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestUsageOfMethods: a realserver that has connections by a former method has an entry for each method, and each entry
// has its method.
func TestUsageOfMethods(t *testing.T) {
	by := func(kind method.Kind) *config.Director {
		cfg := running()
		web := &cfg.Services[0]
		web.Realservers = web.Realservers[:1]
		if kind != method.TUN {
			web.Realservers[0].Forward, web.Realservers[0].Tunnel = kind, config.Tunnel{}
		}
		return cfg
	}
	kinds := []method.Kind{method.DR, method.NAT, method.TUN}
	o := operate(t, by(kinds[0]), nil)
	for i, kind := range kinds {
		if _, _, err := o.controller.configure(by(kind)); err != nil {
			t.Fatal(err)
		}
		p := &packet.Info{Len: 40, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Src: netip.MustParseAddr("192.0.2.7"),
			SrcPort: uint16(4711 + i), Dst: vip1, DstPort: 80, Proto: packet.ProtoTCP}}
		if _, reason := o.plane.balancer.Snapshot().Decide(p, o.plane.now()); reason != drop.Accept {
			t.Fatal(reason)
		}
	}
	v, err := o.usage(url.Values{"realserver": {first.String()}, "service": {"web"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range v.([]api.RealserverUsage) {
		name := u.Forward
		if u.Left {
			name += " left"
		}
		got = append(got, name)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"dr left", "nat left", "tun"}) {
		t.Errorf("entries of %q", got)
	}
}
