package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestPathShrinks lowers the MTU of the router's links to the realservers during uploads: they lose time, but no byte.
func TestPathShrinks(t *testing.T) {
	for _, offload := range []string{"auto", "off"} {
		t.Run(offload, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 4, nil)
			s.addIPv6()
			more := fmt.Sprintf("offload = %q\n", offload)
			s.startAgents(more + `encap = ["ipip", "gue"]`)
			type path struct {
				name, encap  string
				vip, address netip.Addr
				web          *lab.Host
				told         string // the router's counter of errors to the director
			}
			paths := []path{
				{"ipip-4", "ipip", s.VIP, s.Webs[0].Addr, s.Webs[0], "Icmp:OutDestUnreachs"},
				{"ipip-6", "ipip", s.VIP6, s.Webs[1].Addr6, s.Webs[1], "Icmp6OutPktTooBigs"},
				{"gue-4", "gue", s.VIP, s.Webs[2].Addr, s.Webs[2], "Icmp:OutDestUnreachs"},
				{"gue-6", "gue", s.VIP6, s.Webs[3].Addr6, s.Webs[3], "Icmp6OutPktTooBigs"},
			}
			text := "director." + more
			for i, p := range paths {
				text += fmt.Sprintf("[[service]]\nname = %q\nvip = %q\nprotocol = \"tcp\"\nport = %d\nencap = "+
					"%q\nrealserver = [ { address = %q } ]\n",
					p.name, p.vip, 8000+i, p.encap, p.address)
				s.acceptUploadsAt(p.web, fmt.Sprintf(":%d", 8000+i))
			}
			s.startDirectorWith(text)
			size := short(20_000_000, 4_000_000)
			for i, p := range paths {
				t.Run(p.name, func(t *testing.T) {
					conn, err := s.Client.Dial("tcp", netip.AddrPortFrom(p.vip, uint16(8000+i)).String())
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
						t.Fatal(err)
					}
					begin, all, told := time.Now(), stream(), s.counters(s.Router)[p.told]
					narrow := func() error { return s.setMTU(s.Router, p.web.Name, 1400) }
					answer, err := putFrom(conn, io.MultiReader(io.LimitReader(all, int64(size/2)), &hook{call: narrow},
						all), size)
					if want := fmt.Sprintf("%d bytes, all as they should be", size); answer != want || err != nil {
						t.Fatalf("the server answers %q, %v; want %q", answer, err, want)
					}
					if s.counters(s.Router)[p.told] == told {
						t.Error("the router has sent no error: the path's MTU did not matter")
					}
					t.Logf("%.0f Mbit/s", float64(size)*8/1e6/time.Since(begin).Seconds())
				})
			}
			for _, agent := range s.agents {
				if in := agent.intake(); len(in.Drops) != 0 {
					t.Errorf("%s refused %v", agent, in.Drops)
				}
			}
		})
	}
}

// TestIPv6sOwnMTU: the director's link has a smaller MTU for IPv6 than its device, as after a router's advertisement.
// The director uses it from the first packet.
func TestIPv6sOwnMTU(t *testing.T) {
	s := newSite(t, 1, nil)
	s.speak(true)
	if err := s.Director.Sysctl("net.ipv6.conf.eth0.mtu", "1400"); err != nil {
		t.Fatal(err)
	}
	s.startAgents("")
	s.startDirector("", service{"tcp", "80", "rr", []int{1}})
	s.acceptUploads(s.Webs[0], 80)
	s.mustUpload(80, 2_000_000)
	if n := s.counters(s.Director)["Icmp6OutPktTooBigs"]; n > 0 {
		t.Errorf("%d packets were too big for the director's kernel", n)
	}
	st := s.director.balance()
	// if the client sends no GSO packets: those are segmented to the size that fits
	if delete(st.Drops, "too_big"); len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
}

// hook is an empty reader that calls a function at its first read.
type hook struct{ call func() error }

// Read implements io.Reader.
func (h *hook) Read([]byte) (int, error) {
	if err := h.call(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// setMTU sets the MTU of a host's end of a link.
func (s *site) setMTU(h *lab.Host, link string, mtu int) error {
	return h.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, mtu)
	})
}

// TestPathToClientShrinks lowers the MTU of the router's link to the client during a download. The router's error goes
// to the VIP, and reaches the server through the director and the tunnel.
func TestPathToClientShrinks(t *testing.T) { testkit.Families(t, testPathToClientShrinks) }

func testPathToClientShrinks(t *testing.T, ipv6 bool) {
	s := newRunningSiteOf(t, ipv6, 2, service{"tcp", "80", "wrr", []int{1, 1}})
	size := short(20_000_000, 4_000_000)
	for _, web := range s.Webs {
		s.serveTCP(web, s.at(80), func(c net.Conn) {
			_, _ = io.CopyN(c, stream(), int64(size)) // the client counts
		})
	}
	conn := s.dial("tcp", 80)
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got, want := sha256.New(), sha256.New()
	_, _ = io.CopyN(want, stream(), int64(size)) // never fails
	n, err := io.CopyN(got, conn, int64(size/4))
	if err == nil {
		err = s.setMTU(s.Router, s.Client.Name, 1400)
	}
	if err != nil {
		t.Fatal(err)
	}
	if more, err := io.Copy(got, conn); err != nil || n+more != int64(size) || !bytes.Equal(got.Sum(nil),
		want.Sum(nil)) {
		t.Errorf("%d bytes came, of %d, %v; SHA-256 %x, want %x", n+more, size, err, got.Sum(nil), want.Sum(nil))
	}
	told := "Icmp:OutDestUnreachs"
	if ipv6 {
		told = "Icmp6OutPktTooBigs"
	}
	if s.counters(s.Router)[told] == 0 {
		t.Error("the router has sent no error: the path's MTU did not matter")
	}
	if st := s.director.balance(); len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	for _, agent := range s.agents {
		if in := agent.intake(); len(in.Drops) != 0 {
			t.Errorf("%s refused %v", agent, in.Drops)
		}
	}
}
