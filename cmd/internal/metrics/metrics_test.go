package metrics

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"vstun/cmd/internal/api"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/testdata/testkit"
)

// ask returns the answer to a scrape.
func ask(t testing.TB, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// values returns the values of our metrics in an answer, by "name{label=value,…}" with labels in their order.
func values(t *testing.T, text string) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for name, f := range families {
		if !strings.HasPrefix(name, "vstun_") {
			continue
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := name
			if labels != nil {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Counter != nil:
				all[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				all[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				all[key+" count"], all[key+" sum"] = float64(m.Histogram.GetSampleCount()), m.Histogram.GetSampleSum()
				for _, b := range m.Histogram.Bucket {
					all[fmt.Sprintf("%s le=%v", key, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			}
		}
	}
	return all
}

// must checks that all has the values of want.
func must(t *testing.T, all, want map[string]float64) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got, ok := all[key]; !ok || got != want[key] {
			t.Errorf("%s is %v (there: %v), want %v", key, got, ok, want[key])
		}
	}
}

// fullDirector is a status without empty fields.
func fullDirector() api.DirectorStatus {
	return api.DirectorStatus{Program: "director", Version: "1.2.3", Queues: 2, In: api.Traffic{Packets: 1,
		Bytes: 2}, Out: api.Traffic{Packets: 3, Bytes: 4},
		Drops: map[string]uint64{"no_service": 5, "later": 9}, Waiting: 6, Overruns: 7, Resets: 17,
		FastPath: api.FastPath{On: true, Connections: 31, Taken: api.Traffic{Packets: 32, Bytes: 33},
			Refused: map[string]uint64{"paths_full": 34}},
		Checks:        api.Checks{Waiting: 18},
		Connections:   api.Connections{Count: 10, Max: 11, HalfOpen: 12, HalfOpenMax: 13, Evicted: 14},
		Leaving:       api.Leaving{Realservers: 15, Connections: 16},
		Neighbours:    api.Neighbours{Answers: 19, Announcements: 20, Conflicts: 21, Failed: 22},
		Mail:          &api.Mail{Sent: 23, Failed: 24, Lost: 25},
		Configuration: api.Configuration{Read: time.UnixMilli(1_700_000_000_500), Error: "x"},
		VRRP: []api.VRRP{{Name: "VI_1", Role: "master", Priority: 30, Sent: 31, Received: 32, Elected: 33,
			Conflicts: 34, Paused: 35, Failed: 36, Refused: map[string]uint64{"password": 37},
			OtherMaster: &api.OtherMaster{Address: "10.0.2.3"}}, {Name: "VI_2", Role: "fault"}},
		WireGuard: &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.2", Handshake: &someAge, In: 40,
			Out: 41}, {Address: "10.99.0.3"}}},
		Tunnels: []api.Tunnel{{Name: "site-b", State: "up", MTU: 1476, In: api.Traffic{Packets: 50, Bytes: 51},
			Out: api.Traffic{Packets: 52, Bytes: 53}, Drops: map[string]uint64{"tunnel_key": 54}, Heard: &someAge,
			Probe: &api.TunnelProbe{Sent: 55, Answered: 56, RoundTrip: 0.25}}, {Name: "site-c", State: "down"}},
		Tables: &api.Tables{Version: 52, Sent: 53, TooLarge: []string{"big"}, Refused: map[string]uint64{"forged": 54},
			Agents: []api.TablesAgent{{Address: "10.0.11.2", Current: true}}},
		Names: []api.Name{{Name: "a.test", Type: "address", Family: "any", Services: []string{"web"},
			Answered: &someAge,
			Targets:  []api.NameTarget{{Addresses: []string{"10.0.11.2", "127.0.0.1"}}}, Failures: 70,
			Refused: []api.NameRefused{{Address: "127.0.0.1"}}}, {Name: "s.test", Type: "srv", Family: "ipv4",
			Server: "10.0.2.53:53", Error: "x", Failures: 71}},
		BGP: &api.BGP{State: "standby", Announced: []string{"198.51.100.80", "198.51.100.81"},
			Withdrawn: []string{"198.51.100.82"}, Peers: []api.BGPPeer{{Address: "10.0.2.1", State: "established",
				Announced: 2, Ups: 3, Downs: 4}}},
		Sync: &api.Sync{Mode: "vstun", Ready: true, Unheard: []string{"10.0.2.5", "224.0.0.81"},
			Sent:     api.SyncTraffic{Datagrams: 23, Records: 24, Bytes: 25},
			Received: api.SyncTraffic{Datagrams: 26, Records: 27, Bytes: 28}, Lost: 29, Resent: 30, ChangesLost: 31,
			Inexpressible: 32, SendErrors: 33, Refused: map[string]uint64{"forged": 34},
			Peers: []api.SyncPeer{{Address: "10.0.2.3", State: "alive", Lost: 35, Bulk: &someAge,
				Received: api.SyncTraffic{Records: 36}}, {Address: "10.0.2.4", State: "silent"}}},
		Services: []api.Service{
			{Name: "web", VIPs: []string{"198.51.100.80", "2001:db8::80"}, Protocol: "tcp",
				Ports: []string{"80", "8000-8099"}, Scheduler: "wlc", Health: "up", Quorum: 2,
				WeightUp: 3, Sorry: true, Realservers: []api.Realserver{
					{Address: "10.0.11.2", Weight: 4, Effective: 5, Health: "up", Active: 6, Inactive: 7,
						Connections: 8, Forwarded: api.Traffic{Packets: 9, Bytes: 10},
						Check: &api.Check{Last: 1.5, Duration: 0.25, Since: 100}},
					{Address: "2001:db8:11::2", Health: "down", Check: &api.Check{}},
				}},
			{Name: `od"d\`, Protocol: "udp", Realservers: []api.Realserver{{Address: "10.0.11.2",
				Health: "unchecked"}}},
		}}
}

var someAge = 37.5

func fullRealserver() api.RealserverStatus {
	return api.RealserverStatus{Program: "realserver", Version: "1.2.3", Queues: 2, VIPs: []string{"198.51.100.80",
		"2001:db8::80"}, MSS: 1440, MSS6: 1420,
		Configuration: api.Configuration{Read: time.UnixMilli(1_700_000_000_500), Error: "faulty"},
		In:            api.Traffic{Packets: 1, Bytes: 2}, Out: api.Traffic{Packets: 3, Bytes: 4},
		Drops: map[string]uint64{"not_director": 5}, Merged: 6, Overruns: 7, Questions: 8,
		WireGuard: &api.WireGuard{Peers: []api.WireGuardPeer{{Address: "10.99.0.1", In: 42, Handshake: &someAge}}},
		Tunnels:   []api.Tunnel{{Name: "site-b", State: "down"}},
		SecondChance: &api.SecondChance{Forwarded: api.Traffic{Packets: 55}, Received: 56, Queries: 57, Unasked: 58,
			Tables: 59, Refused: map[string]uint64{"replayed": 60}},
		FastPath:      api.FastPath{On: true, Taken: api.Traffic{Packets: 11, Bytes: 12}},
		FromDirectors: []api.Counted{{Address: "10.0.2.2", Packets: 9}, {Address: "fd00:0:2::2", Packets: 10}}}
}

// someBatches is the batches of two queues. The second one is empty.
func someBatches() []*stats.Batches {
	var a, b stats.Batches
	for _, n := range []int{1, 1, 2, 3, 63, 64} {
		a.Begin(n)
		a.End()
	}
	return []*stats.Batches{&a, &b}
}

// handlers returns the handler of each program, with all metrics.
func handlers() map[string]http.Handler {
	return map[string]http.Handler{"director": Director(fullDirector, someBatches(), someBatches()[1]),
		"realserver": Realserver(fullRealserver, someBatches())}
}

func TestDirector(t *testing.T) {
	now := float64(time.Now().Unix())
	all := values(t, ask(t, handlers()["director"]))
	web := "service=web"
	first, second := "{realserver=10.0.11.2,"+web+"}", "{realserver=2001:db8:11::2,"+web+"}"
	must(t, all, map[string]float64{
		"vstun_director_received_packets_total":                                                 1,
		"vstun_director_fast_path":                                                              1,
		"vstun_director_fast_path_connections":                                                  31,
		"vstun_director_fast_path_packets_total":                                                32,
		"vstun_director_fast_path_bytes_total":                                                  33,
		"vstun_director_fast_path_refused_total{reason=paths_full}":                             34,
		"vstun_director_fast_path_refused_total{reason=path_error}":                             0,
		"vstun_director_received_bytes_total":                                                   2,
		"vstun_director_sent_packets_total":                                                     3,
		"vstun_director_sent_bytes_total":                                                       4,
		"vstun_director_dropped_packets_total{reason=no_service}":                               5,
		"vstun_director_dropped_packets_total{reason=table_full}":                               0,
		"vstun_director_dropped_packets_total{reason=later}":                                    9,
		"vstun_director_waiting_fragments":                                                      6,
		"vstun_director_waiting_checks":                                                         18,
		"vstun_director_overrun_packets_total":                                                  7,
		"vstun_director_resets_total":                                                           17,
		"vstun_director_queues":                                                                 2,
		"vstun_director_table_entries":                                                          10,
		"vstun_director_table_max_entries":                                                      11,
		"vstun_director_table_half_open_entries":                                                12,
		"vstun_director_table_max_half_open_entries":                                            13,
		"vstun_director_table_evictions_total":                                                  14,
		"vstun_director_leaving_realservers":                                                    15,
		"vstun_director_leaving_connections":                                                    16,
		"vstun_director_neighbour_answers_total":                                                19,
		"vstun_director_neighbour_announcements_total":                                          20,
		"vstun_director_neighbour_conflicts_total":                                              21,
		"vstun_director_neighbour_send_errors_total":                                            22,
		"vstun_director_mails_sent_total":                                                       23,
		"vstun_director_mails_failed_total":                                                     24,
		"vstun_director_mail_lost_changes_total":                                                25,
		"vstun_wireguard_received_bytes_total{peer=10.99.0.2}":                                  40,
		"vstun_tunnel_up{tunnel=site-b}":                                                        1,
		"vstun_name_resolved{family=any,name=a.test,server=,type=address}":                      1,
		"vstun_name_addresses{family=any,name=a.test,server=,type=address}":                     2,
		"vstun_name_refused_addresses{family=any,name=a.test,server=,type=address}":             1,
		"vstun_name_failures_total{family=any,name=a.test,server=,type=address}":                70,
		"vstun_name_resolved{family=ipv4,name=s.test,server=10.0.2.53:53,type=srv}":             0,
		"vstun_name_failures_total{family=ipv4,name=s.test,server=10.0.2.53:53,type=srv}":       71,
		"vstun_tunnel_up{tunnel=site-c}":                                                        0,
		"vstun_tunnel_mtu_bytes{tunnel=site-b}":                                                 1476,
		"vstun_tunnel_received_packets_total{tunnel=site-b}":                                    50,
		"vstun_tunnel_received_bytes_total{tunnel=site-b}":                                      51,
		"vstun_tunnel_sent_packets_total{tunnel=site-b}":                                        52,
		"vstun_tunnel_sent_bytes_total{tunnel=site-b}":                                          53,
		"vstun_tunnel_probes_sent_total{tunnel=site-b}":                                         55,
		"vstun_tunnel_probes_answered_total{tunnel=site-b}":                                     56,
		"vstun_tunnel_probe_round_trip_seconds{tunnel=site-b}":                                  0.25,
		"vstun_tunnel_dropped_packets_total{reason=tunnel_key,tunnel=site-b}":                   54,
		"vstun_tunnel_dropped_packets_total{reason=tunnel_key,tunnel=site-c}":                   0,
		"vstun_wireguard_sent_bytes_total{peer=10.99.0.2}":                                      41,
		"vstun_director_sync_ready":                                                             1,
		"vstun_director_sync_peers":                                                             1,
		"vstun_director_sync_sent_datagrams_total":                                              23,
		"vstun_director_sync_sent_records_total":                                                24,
		"vstun_director_sync_sent_bytes_total":                                                  25,
		"vstun_director_sync_received_datagrams_total":                                          26,
		"vstun_director_sync_received_records_total":                                            27,
		"vstun_director_sync_received_bytes_total":                                              28,
		"vstun_director_sync_lost_datagrams_total":                                              29,
		"vstun_director_sync_resent_datagrams_total":                                            30,
		"vstun_director_sync_lost_changes_total":                                                31,
		"vstun_director_sync_inexpressible_records_total":                                       32,
		"vstun_director_sync_send_errors_total":                                                 33,
		"vstun_director_sync_refused_total{reason=forged}":                                      34,
		"vstun_director_sync_peer_alive{peer=10.0.2.3}":                                         1,
		"vstun_director_sync_peer_alive{peer=10.0.2.4}":                                         0,
		"vstun_director_sync_peer_alive{peer=10.0.2.5}":                                         0,
		"vstun_director_sync_peer_heard{peer=10.0.2.3}":                                         1,
		"vstun_director_sync_peer_heard{peer=10.0.2.4}":                                         1,
		"vstun_director_sync_peer_heard{peer=10.0.2.5}":                                         0,
		"vstun_director_sync_peer_alive{peer=224.0.0.81}":                                       0,
		"vstun_director_sync_peer_heard{peer=224.0.0.81}":                                       0,
		"vstun_director_sync_peer_lost_datagrams_total{peer=10.0.2.3}":                          35,
		"vstun_director_sync_peer_received_records_total{peer=10.0.2.3}":                        36,
		"vstun_director_sync_peer_table_age_seconds{peer=10.0.2.3}":                             37.5,
		"vstun_director_sync_refused_total{reason=replayed}":                                    0,
		"vstun_director_config_last_reload_successful":                                          0,
		"vstun_director_config_last_reload_success_timestamp_seconds":                           1_700_000_000.5,
		"vstun_director_batch_packets{queue=0} count":                                           6,
		"vstun_director_batch_packets{queue=0} sum":                                             134,
		"vstun_director_batch_packets{queue=0} le=1":                                            2,
		"vstun_director_batch_packets{queue=0} le=2":                                            3,
		"vstun_director_batch_packets{queue=0} le=4":                                            4,
		"vstun_director_batch_packets{queue=0} le=32":                                           4,
		"vstun_director_batch_packets{queue=0} le=64":                                           6,
		"vstun_director_batch_packets{queue=1} count":                                           0,
		"vstun_director_batch_packets{queue=local} count":                                       0,
		"vstun_service_up{" + web + "}":                                                         1,
		"vstun_service_quorum{" + web + "}":                                                     2,
		"vstun_service_up_weight{" + web + "}":                                                  3,
		"vstun_service_sorry_server_in_use{" + web + "}":                                        1,
		"vstun_realserver_weight" + first:                                                       4,
		"vstun_realserver_effective_weight" + first:                                             5,
		"vstun_realserver_up" + first:                                                           1,
		"vstun_realserver_up" + second:                                                          0,
		"vstun_realserver_connections_total" + first:                                            8,
		"vstun_realserver_packets_total" + first:                                                9,
		"vstun_realserver_bytes_total" + first:                                                  10,
		"vstun_realserver_check_duration_seconds" + first:                                       0.25,
		`vstun_realserver_weight{realserver=10.0.11.2,service=od"d\}`:                           0,
		"vstun_realserver_current_connections{realserver=10.0.11.2," + web + ",state=active}":   6,
		"vstun_realserver_current_connections{realserver=10.0.11.2," + web + ",state=inactive}": 7,
		"vstun_service_info{ports=80,8000-8099,protocol=tcp,scheduler=wlc," + web +
			",vips=198.51.100.80,2001:db8::80}": 1,
	})
	for _, absent := range []string{`vstun_service_up{service=od"d\}`,
		`vstun_realserver_up{realserver=10.0.11.2,service=od"d\}`,
		`vstun_realserver_check_duration_seconds{realserver=10.0.11.2,service=od"d\}`,
		"vstun_director_dropped_packets_total{reason=tun_error}",
		"vstun_wireguard_last_handshake_timestamp_seconds{peer=10.99.0.3}",
		"vstun_tunnel_last_received_timestamp_seconds{tunnel=site-c}", "vstun_tunnel_probes_sent_total{tunnel=site-c}",
		// Of one that has not been checked yet there is no time: it would be the scrape's.
		"vstun_realserver_check_duration_seconds" + second, "vstun_realserver_last_check_timestamp_seconds" + second,
		"vstun_realserver_last_change_timestamp_seconds" + second} {
		if v, there := all[absent]; there {
			t.Errorf("%s is %v, want none", absent, v)
		}
	}
	if at := all["vstun_wireguard_last_handshake_timestamp_seconds{peer=10.99.0.2}"]; at < now-someAge-1 ||
		at > now-someAge+60 {
		t.Errorf("the last handshake was at %f, now is %f", at, now)
	}
	for key, seconds := range map[string]float64{"vstun_realserver_last_check_timestamp_seconds": 1.5,
		"vstun_realserver_last_change_timestamp_seconds": 100} {
		if at := all[key+first]; at < now-seconds-1 || at > now-seconds+60 {
			t.Errorf("%s is %f, now is %f", key, at, now)
		}
	}
}

func TestRealserver(t *testing.T) {
	must(t, values(t, ask(t, handlers()["realserver"])), map[string]float64{
		"vstun_agent_received_packets_total":                       1,
		"vstun_agent_received_bytes_total":                         2,
		"vstun_agent_injected_packets_total":                       3,
		"vstun_agent_injected_bytes_total":                         4,
		"vstun_agent_dropped_packets_total{reason=not_director}":   5,
		"vstun_agent_dropped_packets_total{reason=tun_error}":      0,
		"vstun_agent_merged_packets_total":                         6,
		"vstun_agent_overrun_packets_total":                        7,
		"vstun_agent_fast_path":                                    1,
		"vstun_agent_fast_path_packets_total":                      11,
		"vstun_agent_fast_path_bytes_total":                        12,
		"vstun_agent_config_last_reload_successful":                0,
		"vstun_agent_config_last_reload_success_timestamp_seconds": 1_700_000_000.5,
		"vstun_agent_questions_total":                              8,
		"vstun_wireguard_received_bytes_total{peer=10.99.0.1}":     42,
		"vstun_agent_director_packets_total{director=10.0.2.2}":    9,
		"vstun_agent_queues":                                       2,
		"vstun_tunnel_up{tunnel=site-b}":                           0,
		"vstun_agent_mss_bytes{ip=4}":                              1440,
		"vstun_agent_mss_bytes{ip=6}":                              1420,
		"vstun_agent_vip_info{vip=2001:db8::80}":                   1,
		"vstun_agent_batch_packets{queue=0} count":                 6,
	})
}

// TestLint lets Prometheus's linter check the answers, and its strictest registry collect them.
func TestLint(t *testing.T) {
	for name, h := range handlers() {
		problems, err := promlint.New(strings.NewReader(ask(t, h))).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%s: %v %v", name, problems, err)
		}
	}
	for _, c := range []prometheus.Collector{&director{fullDirector, someBatches(), someBatches()[1]},
		&agent{fullRealserver, someBatches()}} {
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(c)
		if _, err := r.Gather(); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
}

// TestServicesThatLeftAreForgotten scrapes before and after a reload.
func TestServicesThatLeftAreForgotten(t *testing.T) {
	st := fullDirector()
	h := Director(func() api.DirectorStatus { return st }, nil, new(stats.Batches))
	if !strings.Contains(ask(t, h), `service="web"`) {
		t.Error("the service is not there")
	}
	st.Services = slices.Clone(st.Services)
	st.Services[0].Name = "site"
	if text := ask(t, h); strings.Contains(text, `service="web"`) || !strings.Contains(text, `service="site"`) {
		t.Error("the service's former name is still there")
	}
}

// TestReasons compares the reasons that each program shows without having seen them with the manual's tables.
func TestReasons(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| (both|director|realserver) \\|").
		FindAllStringSubmatch(testkit.ManualText(t), -1)
	where := map[string]string{}
	for _, row := range rows {
		if other, twice := where[row[1]]; twice && other != row[2] {
			t.Errorf("%s: in the manual %s, and %s", row[1], other, row[2])
		}
		where[row[1]] = row[2]
	}
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		if in := where[d.String()]; d.Director() != (in != "realserver") || d.Realserver() != (in != "director") {
			t.Errorf("%v: of the director %v, of the agent %v; in the manual %q", d, d.Director(), d.Realserver(),
				in)
		}
	}
}

// TestManualNames wants every metric in the manual, and there no other.
func TestManualNames(t *testing.T) {
	names := map[string]bool{}
	for _, h := range handlers() {
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (vstun_\w+) `).FindAllStringSubmatch(ask(t, h), -1) {
			names[m[1]] = true
		}
	}
	text := testkit.ManualText(t)
	for name := range names {
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+"{") {
			t.Errorf("%s is not in the manual", name)
		}
	}
	for _, m := range regexp.MustCompile("`(vstun_\\w+)").FindAllStringSubmatch(text, -1) {
		if !names[m[1]] {
			t.Errorf("the manual's %s does not exist", m[1])
		}
	}
}

// manyRealservers is the status of a large director.
func manyRealservers() api.DirectorStatus {
	st := fullDirector()
	st.Services = nil
	for i := range 1000 {
		s := api.Service{Name: fmt.Sprintf("service-%d", i), VIPs: []string{fmt.Sprintf("198.51.%d.%d", i/250,
			i%250)}, Protocol: "tcp", Ports: []string{"80"}, Scheduler: "wlc", Health: "up"}
		for j := range 10 {
			s.Realservers = append(s.Realservers, api.Realserver{Address: fmt.Sprintf("10.%d.%d.2", j, i%250),
				Weight: 1, Effective: 1, Health: "up", Active: i, Inactive: j,
				Connections: 1 << 30, Forwarded: api.Traffic{Packets: 1 << 40, Bytes: 1 << 50},
				Check: &api.Check{Last: 1, Duration: 0.001, Since: 1000}})
		}
		st.Services = append(st.Services, s)
	}
	return st
}

// TestManyRealservers: an answer has all of ten thousand realservers. BenchmarkScrape measures it: half a second.
func TestManyRealservers(t *testing.T) {
	st := manyRealservers()
	h := Director(func() api.DirectorStatus { return st }, someBatches(), new(stats.Batches))
	if n := strings.Count(ask(t, h), "\nvstun_realserver_up{"); n != 10_000 {
		t.Errorf("%d of 10,000 realservers", n)
	}
}

func BenchmarkScrape(b *testing.B) {
	st := manyRealservers()
	h := Director(func() api.DirectorStatus { return st }, someBatches(), new(stats.Batches))
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(ask(b, h))))
	}
}
