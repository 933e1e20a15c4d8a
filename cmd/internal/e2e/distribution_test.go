package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// expectedWRR returns the servers of n requests by weighted round robin (Linux ip_vs_wrr.c), for realservers with these
// weights in the configuration's order. It is a slow and obvious model. The kernel's list has the realservers in
// reverse, since each is added at its front. A round goes from the highest weight down to 1, and takes at each step the
// realservers with at least that weight. The first round begins at step 1: while the first realserver was the only one,
// that was the only step.
func expectedWRR(names []string, weights []int, n int) (order []string) {
	step := 1
	for {
		for i := len(names) - 1; i >= 0; i-- {
			if weights[i] >= step {
				if order = append(order, names[i]); len(order) == n {
					return order
				}
			}
		}
		if step--; step == 0 {
			step = slices.Max(weights)
		}
	}
}

// TestDistribution sends 1,000 requests to nginx on three web servers, with curl and with Go, and compares the server
// of each with the model.
func TestDistribution(t *testing.T) { testkit.Families(t, testSpread) }

func testSpread(t *testing.T, ipv6 bool) {
	needTool(t, "nginx", "nginx-light")
	needTool(t, "curl", "curl")
	const requests, byCurl = 1000, 50
	weights := []int{3, 2, 1}
	s := newRunningSiteOf(t, ipv6, 3, service{"tcp", "80", "wrr", weights})
	var names []string
	for _, web := range s.Webs {
		s.nginx(web)
		names = append(names, web.Name)
	}
	asked := s.count(s.Director, "eth0", lab.Filter{Destination: s.VIP, Direction: lab.In})
	passed := s.count(s.Director, "eth0", lab.Filter{Source: s.VIP})
	replies := s.count(s.Client, "eth0", lab.Filter{Source: s.VIP, Direction: lab.In})

	answers := s.curl(byCurl)
	browser := s.browser()
	for len(answers) < requests {
		body, err := fetch(browser, "http://"+s.at(80)+"/")
		if err != nil {
			t.Fatalf("request %d: %v", len(answers)+1, err)
		}
		answers = append(answers, body)
	}

	want := expectedWRR(names, weights, requests)
	if head := strings.Join(want[:12], " "); head != "web3 web2 web1 web1 web2 web1 web3 web2 web1 web1 web2 web1" {
		t.Fatalf("the model itself is wrong: %s", head)
	}
	for i := range want {
		if answers[i] != want[i] {
			t.Fatalf("request %d was answered by %s, want %s by weighted round robin; answers so far: %v; the client "+
				"sent %d segments again; the director: %+v", i+1, answers[i], want[i], answers[:i+1],
				s.counters(s.Client)["TcpRetransSegs"], s.director.balance())
		}
	}
	counts := []uint64{500, 333, 167}
	st := s.director.balance()
	for i, r := range st.Services[0].Realservers {
		if r.Address != s.Webs[i].Addr.String() || r.Connections != counts[i] || r.Weight != weights[i] {
			t.Errorf("status has %+v, want %d connections to %s", r, counts[i], s.Webs[i].Addr)
		}
	}
	if len(st.Services[0].Realservers) != 3 || len(st.Drops) != 0 {
		t.Errorf("status has %d realservers, want 3, and drops %v, want none", len(st.Services[0].Realservers),
			st.Drops)
	}
	// A request is at least a SYN, an ACK, the request, and a FIN or two with their ACKs.
	testkit.Within(t, "every packet that reached the director has left it", soon, func() bool {
		st := s.director.balance()
		return st.In.Packets == st.Out.Packets && st.In.Packets == asked()
	})
	if n := asked(); n < 5*requests {
		t.Errorf("only %d packets of %d requests reached the director", n, requests)
	}
	testkit.Within(t, "four packets of each reply have reached the client", soon,
		func() bool { return replies() >= 4*requests })
	if n := passed(); n != 0 {
		t.Errorf("%d packets from the VIP passed the director: replies must go straight to the client", n)
	}

	// The text of status has the same numbers.
	shown := run(t, s.Director, exec.Command(programPath("director"), "status", "-c", s.director.config))
	for _, part := range []string{"TCP " + s.at(80) + " wrr", s.Webs[0].Addr.String(), " 500 ", " 333 ", " 167 "} {
		if shown.code != 0 || !strings.Contains(shown.stdout, part) {
			t.Errorf("director status: exit status %d, %q is missing in:\n%s%s", shown.code, part, shown.stdout,
				shown.stderr)
		}
	}
}

// curl sends n requests, one process each, and returns the server of each.
func (s *site) curl(n int) (answers []string) {
	s.t.Helper()
	for i := range n {
		got := run(s.t, s.Client, exec.Command("curl", "-sS", "--max-time", "20", "-w",
			" %{num_connects} %{remote_ip} %{http_code}", "http://"+s.at(80)+"/"))
		server, rest, _ := strings.Cut(got.stdout, " ")
		if want := fmt.Sprintf("1 %s 200", s.VIP); got.code != 0 || rest != want {
			s.t.Fatalf("curl, request %d: exit status %d, connections, server and status are %q, want %q: %s", i+1,
				got.code, rest, want, got.stderr)
		}
		answers = append(answers, server)
	}
	return answers
}
