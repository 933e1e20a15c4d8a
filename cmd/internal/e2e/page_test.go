package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/page/pagetest"
	"vstun/testdata/testkit"
)

// TestPage opens a director's page in a browser while requests pass: its figures are those of the control socket, then
// and at the end.
func TestPage(t *testing.T) {
	t.Parallel()
	needMachine(t)
	browser, err := pagetest.Start()
	if pagetest.Missing(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(browser.Close)
	s := newSite(t, 2, nil)
	s.startAgents("")
	const metrics = "metrics = \"" + pageAddress + "\""
	s.startDirector(metrics, service{"tcp", "80", "wrr", []int{2, 1}}, service{"udp", "53", "rr", []int{1, 0}})
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	tab := browser.Open(t, s.bringPage(), pagetest.Look{})
	tab.Wait("the page is live", "document.body.dataset.state === 'live' && document.querySelector('#services tbody')")
	tab.Click("input[value=totals]")

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	stop := sync.OnceFunc(func() {
		cancel()
		clients.Wait()
	})
	t.Cleanup(stop)
	clients.Go(func() {
		for ctx.Err() == nil {
			c, err := s.Client.DialContext(ctx, "tcp", s.at(80))
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			if _, err := askName(c, "hello"); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	})
	testkit.Within(t, "both realservers have requests", soon, func() bool {
		rs := s.director.balance().Services[0].Realservers
		return rs[0].Forwarded.Packets > 0 && rs[1].Forwarded.Packets > 0
	})
	// Meanwhile the page is behind by a moment: it soon has at least the figures of an earlier status, and never more
	// than a later one.
	for range short(3, 1) {
		before := s.director.balance()
		for i, r := range before.Services[0].Realservers {
			tab.Wait("the page has what has passed", fmt.Sprintf("Number(document.querySelectorAll('#services "+
				".realserver .packets')[%d].textContent.replaceAll(',', '')) >= %d", i, r.Forwarded.Packets))
		}
		got := pageRows(tab)
		after := s.director.balance()
		for i, r := range after.Services[0].Realservers {
			if p := figure(t, got[i+1][7]); p < before.Services[0].Realservers[i].Forwarded.Packets ||
				p > r.Forwarded.Packets {
				t.Errorf("the page shows %d packets to %s, the socket %d", p, r.Address, r.Forwarded.Packets)
			}
		}
	}
	tab.Click("input[value=rates]")
	tab.Wait("packets pass each second", "parseFloat(document.querySelector('#services .service "+
		".packets').textContent.replaceAll(',', '')) > 0 && parseFloat(document.querySelector('#tile-packets "+
		"b').textContent) > 0")
	stop()
	tab.Wait("no packet passes any more", "document.querySelector('#services .service .packets').textContent === '0'")
	tab.Click("input[value=totals]")

	// The page follows a datagram and a reload.
	c := s.dial("udp", 53)
	if _, err := c.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	c = s.dial("udp", 99)
	if _, err := c.Write([]byte("refused")); err != nil {
		t.Fatal(err)
	}
	s.director.configure(s.directorTOML(s.director.socket, metrics, service{"tcp", "80", "wrr", []int{2, -1}},
		service{"udp", "53", "rr", []int{1, 0}}))
	if got := s.ask("reload"); got.code != 0 {
		t.Fatalf("reload: %s", got.stderr)
	}
	var want, got [][]string
	defer func() {
		if t.Failed() {
			t.Logf("the page\n%q\nthe socket\n%q", got, want)
		}
	}()
	testkit.Within(t, "the page has the figures of the control socket", pagetest.Patience, func() bool {
		st := s.director.balance()
		want, got = append(statusRows(st), dropRows(st)...), append(pageRows(tab), pageDrops(tab)...)
		return slices.EqualFunc(want, got, slices.Equal)
	})
}

// pageAddress is the address of a director's page, in its own namespace.
const pageAddress = "127.0.0.1:9464"

// bringPage forwards an address that the browser reaches to the director's page.
func (s *site) bringPage() (url string) {
	s.t.Helper()
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", pageAddress },
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.Director.DialContext(ctx, network, address)
		}},
	})
	s.t.Cleanup(server.Close)
	return server.URL + "/"
}

// pageRows returns the page's table of services and realservers: name, weight, active, inactive, connections, packets.
// The page rounds bytes.
func pageRows(tab *pagetest.Tab) [][]string {
	return pagetest.Eval[[][]string](tab, `[...document.querySelectorAll('#services tbody tr')].map(tr =>
		[(tr.querySelector('.title') ?? tr.querySelector('.name')).textContent,
			...['how', 'weight', 'text', 'active', 'inactive', 'connections', 'packets']
				.map(c => tr.querySelector('.' + c).textContent)])`)
}

// statusRows returns the same of a status.
func statusRows(st api.DirectorStatus) (rows [][]string) {
	for i, svc := range st.Services {
		var weight, active, inactive int
		var connections uint64
		service := len(rows)
		rows = append(rows, nil)
		for _, r := range svc.Realservers {
			weight += r.Weight
			active += r.Active
			inactive += r.Inactive
			connections += r.Connections
			health := "unchecked"
			if r.Weight == 0 {
				health = "draining"
			}
			rows = append(rows, row(r.Address, r.Method(), r.Weight, health, r.Active, r.Inactive, r.Connections,
				r.Forwarded.Packets))
		}
		rows[service] = row(svc.Name, svc.Settings(), weight, fmt.Sprintf("%d unchecked", len(svc.Realservers)), active,
			inactive, connections, packetsOf(st, i))
	}
	return rows
}

// pageDrops returns the page's packets refused: reason and number.
func pageDrops(tab *pagetest.Tab) [][]string {
	return pagetest.Eval[[][]string](tab, "[...document.querySelectorAll('#drops tbody tr')].filter(tr => "+
		"!tr.innerText.startsWith('overruns')).map(tr => [tr.cells[0].textContent, tr.cells[2].textContent])")
}

// dropRows returns the same of a status.
func dropRows(st api.DirectorStatus) (rows [][]string) {
	for _, reason := range slices.Sorted(maps.Keys(st.Drops)) {
		rows = append(rows, []string{reason, grouped(st.Drops[reason])})
	}
	return rows
}

func row(name, how string, weight int, health string, active, inactive int, connections, packets uint64) []string {
	return []string{name, how, fmt.Sprint(weight), health, grouped(uint64(active)), grouped(uint64(inactive)),
		grouped(connections), grouped(packets)}
}

// packetsOf returns the packets sent to all realservers of a service.
func packetsOf(st api.DirectorStatus, service int) (n uint64) {
	for _, r := range st.Services[service].Realservers {
		n += r.Forwarded.Packets
	}
	return n
}

// grouped formats a number as the page does: "12,345".
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// figure parses a number of grouped.
func figure(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.ReplaceAll(s, ",", ""), 10, 64)
	if err != nil {
		t.Errorf("%q is no figure", s)
	}
	return n
}
