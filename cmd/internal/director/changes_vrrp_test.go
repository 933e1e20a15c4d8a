package director

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/routing/vrrp"
)

// TestChangesOfInstances: a reload says of a secret only that it has changed. A renamed instance is a new one.
func TestChangesOfInstances(t *testing.T) {
	instance := func(name, password, key string) config.VRRP {
		v := config.VRRP{Instance: vrrp.Instance{Name: name, Device: "eth0", RouterID: 51, Version: 3, Priority: 100,
			Addrs: []netip.Addr{netip.MustParseAddr("10.0.2.80")}, Password: password}}
		if key != "" {
			v.Key = &vrrp.Key{ID: 1, Bytes: key}
		}
		return v
	}
	for _, c := range []struct {
		name    string
		was, is []config.VRRP
		want    []string
	}{
		{"nothing", []config.VRRP{instance("VI_1", "p", "k")}, []config.VRRP{instance("VI_1", "p", "k")}, nil},
		{"another key", []config.VRRP{instance("VI_1", "", "111111")}, []config.VRRP{instance("VI_1", "", "222222")},
			[]string{"vrrp VI_1: key changed"}},
		{"a longer key", []config.VRRP{instance("VI_1", "", "1")}, []config.VRRP{instance("VI_1", "", "22")},
			[]string{"vrrp VI_1: key changed"}},
		{"a key", []config.VRRP{instance("VI_1", "", "")}, []config.VRRP{instance("VI_1", "", "22")},
			[]string{"vrrp VI_1: key none -> 2 characters"}},
		{"another password", []config.VRRP{instance("VI_1", "a", "")}, []config.VRRP{instance("VI_1", "b", "")},
			[]string{"vrrp VI_1: password changed"}},
		{"no password", []config.VRRP{instance("VI_1", "a", "")}, []config.VRRP{instance("VI_1", "", "")},
			[]string{"vrrp VI_1: password 1 character -> none"}},
		{"another name", []config.VRRP{instance("VI_1", "", "")}, []config.VRRP{instance("VI_2", "", "")}, []string{
			"vrrp VI_2: added: interface eth0, router_id 51, priority 100", "vrrp VI_1: removed"}},
		{"removed", []config.VRRP{instance("VI_1", "", ""), instance("VI_2", "", "")},
			[]config.VRRP{instance("VI_2", "", "")}, []string{"vrrp VI_1: removed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := changes(&config.Director{VRRP: c.was}, &config.Director{VRRP: c.is})
			if diff := cmp.Diff(c.want, texts(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
