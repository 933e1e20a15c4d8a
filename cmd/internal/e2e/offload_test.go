package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
)

// TestOffloads uploads on every path that a packet can take: TUN devices with and without offloads at either end, and a
// network card at the realserver with and without GRO. An agent that did not understand tunnel packets merged by GRO
// would reach 0.3 Mbit/s there.
func TestOffloads(t *testing.T) {
	for _, director := range []string{"auto", "off"} {
		for _, agent := range []string{"auto", "off"} {
			for name, link := range map[string]lab.Link{"wire": {}, "gro": {Segmented: true,
				GRO: 50 * time.Microsecond}} {
				t.Run(fmt.Sprintf("%s-%s-%s", director, agent, name), func(t *testing.T) {
					s := newSite(t, 1, map[string]lab.Link{"web1": link})
					const noFastPath = "\nfast_path = \"off\""
					s.startAgents(fmt.Sprintf("offload = %q", agent) + noFastPath)
					s.startDirector(fmt.Sprintf("offload = %q", director)+noFastPath,
						service{"tcp", "80", "wrr", []int{1}})
					s.acceptUploads(s.Webs[0], 80)
					conn := s.dial("tcp", 80)
					if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
						t.Fatal(err)
					}
					n := bulk() / 4
					begin := time.Now()
					answer, err := put(conn, n)
					if err != nil {
						t.Fatal(err)
					}
					if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want {
						t.Errorf("the server answers %q, want %q", answer, want)
					}
					t.Logf("%.0f Mbit/s", float64(n)*8/1e6/time.Since(begin).Seconds())
					if st := s.director.balance(); (st.Offloads == "") != (director == "off") || len(st.Drops) != 0 {
						t.Errorf("the director has the offloads %q and dropped %v", st.Offloads, st.Drops)
					}
					in := s.agents[0].intake()
					if (in.Offloads == "") != (agent == "off") || len(in.Drops) != 0 {
						t.Errorf("the agent has the offloads %q and dropped %v", in.Offloads, in.Drops)
					}
					if average := in.In.Bytes / in.In.Packets; (average > 2000) != (name == "gro") {
						t.Errorf("%d packets of %d bytes on average reached the agent", in.In.Packets, average)
					}
				})
			}
		}
	}
}

// TestTunnelOfAClient: a client's tunnel to the VIP (VXLAN) carries TCP. If the client is on the director's machine,
// its kernel leaves the inner checksum to a network card, and the TUN device leaves it to the director.
func TestTunnelOfAClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.startDirector("", service{"udp", "4789", "rr", []int{1}})
	const ours, theirs = "172.30.0.1", "172.30.0.2"
	for _, end := range []struct {
		host                *lab.Host
		local, remote, addr string
	}{{s.Client, s.Client.Addr.String(), s.VIP.String(), ours}, {s.Webs[0], s.VIP.String(), s.Client.Addr.String(),
		theirs}} {
		script := fmt.Sprintf("ip link add vx type vxlan id 1 dstport 4789 local %s remote %s && ip addr add %s/24 "+
			"dev vx && ip link set vx up", end.local, end.remote, end.addr)
		if out, err := end.host.Run(exec.Command("sh", "-c", script)); err != nil {
			if strings.Contains(string(out), "Unknown device type") {
				t.Skip("SKIPPED: needs a kernel with VXLAN: modprobe vxlan")
			}
			t.Fatalf("%s: %v", out, err)
		}
	}
	server, err := s.Webs[0].Listen("tcp", theirs+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := s.Client.DialContext(ctx, "tcp", theirs+":80")
	if err != nil {
		t.Fatalf("%v; the director dropped %v", err, s.director.balance().Drops)
	}
	conn.Close()
	if drops := s.director.balance().Drops; len(drops) != 0 {
		t.Errorf("the director dropped %v", drops)
	}
}
