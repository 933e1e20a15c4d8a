package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// The addresses of both programs' HTTP servers, each in its own namespace.
const (
	metricsAddress = "127.0.0.1:9464"
	metricsKey     = "metrics = \"" + metricsAddress + "\""
)

// httpGet requests path of a program over HTTP, by curl on the program's host, and returns the answer.
func (p *program) httpGet(address, path string) (string, error) {
	p.t.Helper()
	got := run(p.t, p.host, exec.Command("curl", "-sS", "--fail", "--max-time", "20", "http://"+address+path))
	if got.code != 0 {
		return "", fmt.Errorf("curl: %s", got.stderr)
	}
	return got.stdout, nil
}

func (p *program) mustHTTPGet(address, path string) string {
	p.t.Helper()
	text, err := p.httpGet(address, path)
	if err != nil {
		p.t.Fatalf("%s %s: %v", p, path, err)
	}
	return text
}

// scrape returns the program's metrics, by names with labels as written.
func (p *program) scrape() map[string]float64 {
	p.t.Helper()
	all := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^(vstun_\S+) (\S+)$`).FindAllStringSubmatch(p.mustHTTPGet(metricsAddress,
		"/metrics"), -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			p.t.Fatal(err)
		}
		all[m[1]] = v
	}
	return all
}

// mustPassPromtool lets Prometheus's own tool check the program's metrics.
func (p *program) mustPassPromtool() {
	p.t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		p.t.Log("SKIPPED: promtool check metrics: apt-get install prometheus (or make deps)")
		return
	}
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(p.mustHTTPGet(metricsAddress, "/metrics"))
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Errorf("promtool check metrics of %s: %v\n%s", p, err, out)
	}
}

// TestMetrics scrapes both programs after traffic: the figures are those of the status, and of the traffic. A reload
// that renames a service removes the former name, a refused one is reported, and one that changes the address moves the
// server.
func TestMetrics(t *testing.T) {
	t.Parallel()
	needTool(t, "curl", "curl")
	s := newSite(t, 2, nil)
	s.startAgents(metricsKey)
	s.startDirector(metricsKey, service{"tcp", "80", "rr", []int{3, 1}}, service{"udp", "53", "rr", []int{1, -1}})
	s.namedEcho(s.Webs[0], 80)
	s.namedEcho(s.Webs[1], 80)
	const connections = 6
	for range connections {
		if _, err := askName(s.dial("tcp", 80), "?"); err != nil {
			t.Fatal(err)
		}
	}
	client := s.rawSender(s.Client)
	for range 5 { // a port without service
		client.inject(udpPacket(t, s.Client.Addr, s.VIP, 10_000, 99, "?"))
	}
	testkit.Within(t, "packets to a port without service are refused", soon,
		func() bool { return s.director.balance().Drops["no_service"] == 5 })

	for _, p := range append([]*program{s.director}, s.agents...) {
		p.mustPassPromtool()
		if !strings.Contains(p.mustHTTPGet(metricsAddress, "/"), "metrics") {
			t.Errorf("%s does not name its metrics at /", p)
		}
	}
	var st, over api.DirectorStatus
	var m map[string]float64
	testkit.Within(t, "the director rests", soon, func() bool { // the connections' last packets are through
		st = s.director.balance()
		if err := json.Unmarshal([]byte(s.director.mustHTTPGet(metricsAddress, "/status")), &over); err != nil {
			t.Fatal(err)
		}
		m = s.director.scrape()
		return st.In == over.In && float64(st.In.Packets) == m["vstun_director_received_packets_total"]
	})
	want := map[string]float64{
		"vstun_director_received_packets_total":                               float64(st.In.Packets),
		"vstun_director_received_bytes_total":                                 float64(st.In.Bytes),
		"vstun_director_sent_packets_total":                                   float64(st.Out.Packets),
		"vstun_director_sent_bytes_total":                                     float64(st.Out.Bytes),
		`vstun_director_dropped_packets_total{reason="no_service"}`:           5,
		`vstun_director_dropped_packets_total{reason="table_full"}`:           0,
		"vstun_director_table_entries":                                        float64(st.Connections.Count),
		"vstun_director_table_max_entries":                                    float64(st.Connections.Max),
		"vstun_director_queues":                                               float64(st.Queues),
		"vstun_director_config_last_reload_successful":                        1,
		`vstun_realserver_weight{realserver="10.0.11.2",service="s1"}`:        3,
		`vstun_realserver_packets_total{realserver="10.0.11.2",service="s2"}`: 0,
	}
	scheduled := 0.0
	for i, r := range st.Services[0].Realservers {
		labels := fmt.Sprintf(`{realserver="%s",service="s1"}`, s.Webs[i].Addr)
		want["vstun_realserver_connections_total"+labels] = float64(r.Connections)
		want["vstun_realserver_packets_total"+labels] = float64(r.Forwarded.Packets)
		want["vstun_realserver_bytes_total"+labels] = float64(r.Forwarded.Bytes)
		scheduled += m["vstun_realserver_connections_total"+labels]
	}
	read := 0.0
	for i := range st.Queues {
		read += m[fmt.Sprintf(`vstun_director_batch_packets_sum{queue="%d"}`, i)]
	}
	if scheduled != connections || read != float64(st.In.Packets) {
		t.Errorf("%v connections were scheduled and %v packets read; want %d and %d", scheduled, read, connections,
			st.In.Packets)
	}
	mustEqual(t, m, want)

	sent := m[`vstun_realserver_packets_total{realserver="10.0.11.2",service="s1"}`]
	var agent map[string]float64
	testkit.Within(t, "the agent has received the director's packets", soon, func() bool {
		agent = s.agents[0].scrape()
		return sent > 0 && agent["vstun_agent_received_packets_total"] == sent
	})
	in := s.agents[0].intake()
	mustEqual(t, agent, map[string]float64{
		"vstun_agent_received_packets_total":                       float64(in.In.Packets),
		"vstun_agent_injected_packets_total":                       float64(in.Out.Packets),
		"vstun_agent_injected_bytes_total":                         float64(in.Out.Bytes),
		`vstun_agent_dropped_packets_total{reason="not_director"}`: 0,
		`vstun_agent_mss_bytes{ip="4"}`:                            float64(in.MSS),
		`vstun_agent_vip_info{vip="198.51.100.80"}`:                1,
	})

	config := s.directorTOML(s.director.socket, metricsKey, service{"tcp", "80", "rr", []int{3, 1}})
	s.director.configure(strings.Replace(config, `"s1"`, `"site"`, 1))
	s.mustReload()
	if text := s.director.mustHTTPGet(metricsAddress, "/metrics"); strings.Contains(text, `service="s1"`) ||
		strings.Contains(text, `service="s2"`) || !strings.Contains(text, `service="site"`) {
		t.Error("the metrics of services that have left are still there")
	}
	for _, address := range []string{"192.0.2.99:9464", "127.0.0.1:99999"} {
		s.director.configure(strings.Replace(config, metricsAddress, address, 1))
		if got := s.ask("reload"); got.code != 1 || !strings.Contains(got.stderr, "metrics") ||
			!strings.Contains(got.stderr, address) {
			t.Errorf("a reload to %s: %+v", address, got)
		}
		if n := s.director.scrape()["vstun_director_config_last_reload_successful"]; n != 0 {
			t.Errorf("a refused reload shows as %v", n)
		}
		if got := s.ask("status"); !strings.Contains(got.stdout, "the last reload failed") ||
			!strings.Contains(got.stdout, address) {
			t.Errorf("a refused reload does not show:\n%s", got.stdout)
		}
	}
	const elsewhere = "127.0.0.1:9999"
	s.director.configure(strings.Replace(config, metricsAddress, elsewhere, 1))
	if lines := s.mustReload(); !slices.Contains(lines, "metrics "+metricsAddress+" -> "+elsewhere) {
		t.Errorf("the reload prints %q", lines)
	}
	s.director.mustHTTPGet(elsewhere, "/metrics")
	testkit.Within(t, "the former address is left", soon, func() bool {
		_, err := s.director.httpGet(metricsAddress, "/metrics")
		return err != nil
	})
}

func mustEqual(t *testing.T, all, want map[string]float64) {
	t.Helper()
	for key, value := range want {
		if got, there := all[key]; !there || got != value {
			t.Errorf("%s is %v (there: %v), want %v", key, got, there, value)
		}
	}
}
