package control

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// serve runs a server on a socket in a directory of its own until the test ends.
func serve(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "deep", "er", "x.sock")
	s, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s.Answer("/status", func() (any, error) { return map[string]int{"n": 7}, nil })
	s.Answer("/fails", func() (any, error) { return nil, errors.New("it can't") })
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(filepath.Dir(socket))
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	return socket
}

func TestGet(t *testing.T) {
	socket := serve(t)
	var got map[string]int
	if err := Get(t.Context(), socket, "/status", &got); err != nil || got["n"] != 7 {
		t.Errorf("%v %v", got, err)
	}
	for path, want := range map[string]string{"/fails": "it can't", "/none": "404"} {
		if err := Get(t.Context(), socket, path, &got); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := Get(t.Context(), socket+"x", "/status", &got); err == nil || !strings.Contains(err.Error(),
		"is the program running") {
		t.Errorf("no such socket: %v", err)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	info, err := os.Stat(serve(t))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestSecondListenerIsRefused(t *testing.T) {
	socket := serve(t)
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "in use by another running program") {
		t.Errorf("%v", err)
	}
	var got map[string]int
	if err := Get(t.Context(), socket, "/status", &got); err != nil {
		t.Errorf("the first one is harmed: %v", err)
	}
}

func TestSocketOfKilledProgramIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "x.sock")
	s, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(socket + "2"); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("a file in its place: %v", err)
	}
	s.listener.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false) // a killed program doesn't
	s.listener.Close()
	next, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

func TestPrint(t *testing.T) {
	var tally stats.Tally
	tally.Drop(drop.NoService)
	st := DirectorStatus{Version: "1", Pid: 2, Uptime: 61.2, TUN: "vs0", Queues: 2, In: Traffic{3, 100},
		Out: Traffic{2, 140}, Drops: Drops(&tally),
		Connections: Connections{Count: 5, Max: 1000, HalfOpen: 3, HalfOpenMax: 250, Evicted: 7},
		SendError:   "network is unreachable",
		Leaving:     Leaving{1, 2, []LeavingRealserver{{Service: "web", Address: "10.0.11.9", Active: 2}}},
		Services: []Service{{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp",
			Ports: []string{"80", "8000-8099"}, Scheduler: "wrr", Realservers: []Realserver{{Address: "10.0.11.2",
				Encap: "ipip", Weight: 3, Active: 4, Inactive: 1}}}}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"up 1m1s", "TCP 198.51.100.80:80,8000-8099 wrr (web)", "-> 10.0.11.2",
		"dropped: no_service", "network is unreachable",
		"not configured any more", "-> 10.0.11.9  web", "3 of 250 connections"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 120 {
			t.Errorf("too wide for a terminal: %q", line)
		}
	}
	if strings.Contains(out.String(), "Upper") || strings.Contains(out.String(), "draining") {
		t.Errorf("columns without values:\n%s", &out)
	}
	out.Reset()
	if err := PrintRealserver(&out, &RealserverStatus{VIPs: []string{"198.51.100.80"},
		Directors: []string{"10.0.2.2/32"}, MSS: 1440, Overruns: 9, TUN: "vs0",
		Answers: Traffic{7, 900}, Drops: map[string]uint64{"not_answer": 3}, SendError: "no route to host",
		FromDirectors:  []Counted{{"10.0.2.2", 5, 61}},
		RefusedSources: []Counted{{"10.0.2.9", 6, 0}}, RefusedDestinations: []Counted{{"198.51.100.81", 7,
			1}}}); err != nil ||
		!strings.Contains(out.String(), "MSS 1440") || !strings.Contains(out.String(), "overruns") ||
		!strings.Contains(out.String(), "answers by vs0       7 packets") || !strings.Contains(out.String(),
		"dropped: not_answer  3 packets") ||
		!strings.Contains(out.String(), "last send error: no route to host") {
		t.Errorf("%v %s", err, &out)
	}
	for _, line := range []string{"from director 10.0.2.2 5 packets last 1m1s ago",
		"not_director: from 10.0.2.9 6 packets last 0s ago",
		"inner_destination: for 198.51.100.81 7 packets last 1s ago"} {
		if !slices.ContainsFunc(slices.Collect(strings.Lines(out.String())),
			func(l string) bool { return strings.Join(strings.Fields(l), " ") == line }) {
			t.Errorf("no line %q in\n%s", line, &out)
		}
	}
	out.Reset()
	refused := RealserverStatus{Configuration: Configuration{Error: "two\nfaults"}}
	if err := PrintRealserver(&out, &refused); err != nil ||
		!strings.Contains(out.String(), "the last reload failed") ||
		!strings.Contains(out.String(), "\n  two\n  faults\n") {
		t.Errorf("%v %s", err, &out)
	}
}

// TestPrintSettings is about what only some services have.
func TestPrintSettings(t *testing.T) {
	key := uint32(7)
	st := DirectorStatus{Services: []Service{
		{Name: "web", VIPs: []string{"198.51.100.80", "2001:db8::1"}, Protocol: "tcp", Ports: []string{"0"},
			Scheduler: "sh", SchedulerFlags: []string{"sh-port", "sh-fallback"},
			Persistence: &Persistence{300, 24, 64}, Realservers: []Realserver{{Address: "10.0.11.2", Encap: "ipip",
				Upper: 100, Lower: 80, Active: 7},
				{Address: "2001:db8:11::2", Encap: "gre", EncapKey: &key, EncapChecksum: true, Weight: 1}}},
		{Name: "dns", VIPs: []string{"198.51.100.80"}, Protocol: "udp", Ports: []string{"53"}, Scheduler: "rr",
			OnePacket: true, Persistence: &Persistence{60, 32, 128}},
	}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(out.String(), "\n\n")
	got, _, _ = strings.Cut(got, "\n\n")
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"Prot Address:Port Scheduler Flags",
		"-> RemoteAddress Forward Weight Upper Lower ActiveConn InActConn Conns InPkts InBytes",
		"TCP 198.51.100.80:0 sh (sh-port,sh-fallback) persistent 300 netmask 24 netmask6 64 (web)",
		"TCP [2001:db8::1]:0 sh (sh-port,sh-fallback) persistent 300 netmask 24 netmask6 64 (web)",
		"-> 10.0.11.2 ipip 0 100 80 7 0 0 0 0 draining",
		"-> 2001:db8:11::2 gre,key=7,csum 1 0 0 0 0 0 0 0",
		"UDP 198.51.100.80:53 rr persistent 60 ops (dns)",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestPrintHealth is about what only services with checks have.
func TestPrintHealth(t *testing.T) {
	st := DirectorStatus{Services: []Service{
		{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp", Ports: []string{"80"}, Scheduler: "rr",
			Health: "down", Quorum: 2, WeightUp: 1, Sorry: true,
			Realservers: []Realserver{{Address: "10.0.11.2", Encap: "ipip", Weight: 1, Health: "down",
				Check: &Check{Reason: "HTTP status 503, want 200-399"}},
				{Address: "10.0.12.2", Encap: "ipip", Weight: 1, Health: "up",
					Check: &Check{Reason: "HTTP status 200"}}, {Address: "10.0.13.2", Encap: "ipip", Weight: 1,
					Health: "unchecked"}}},
	}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"RemoteAddress Forward Weight Health ActiveConn",
		"rr (web) DOWN: weight 1 is up, quorum 2 sorry server -> 10.0.11.2 ipip 1 down 0 0 0 0 0 HTTP status 503, " +
			"want 200-399",
		"10.0.12.2 ipip 1 up 0 0 0 0 0 ->", "10.0.13.2 ipip 1 unchecked 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}

// TestStatusCommand asks a program that says it is a director, by name and as another one, and for a profile.
func TestStatusCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "x.sock")
	srv, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	srv.Answer("/status", func() (any, error) { return DirectorStatus{Program: "director", TUN: "vs7"}, nil })
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error)
	go func() { end <- srv.Run(ctx) }()
	defer func() {
		cancel()
		<-end
		srv.Close()
	}()
	at := &Socket{Config: func() (string, error) { return socket, nil }}
	run := func(c *cobra.Command, args ...string) (string, error) {
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetErr(&out)
		c.SilenceUsage, c.SilenceErrors = true, true
		c.SetArgs(args)
		err := c.Execute()
		return out.String(), err
	}
	if out, err := run(StatusCommand("", "director", at, PrintDirector)); err != nil || !strings.Contains(out, "vs7") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(StatusCommand("", "director", at, PrintDirector), "--json", "--socket", socket); err != nil ||
		!strings.Contains(out, `"tun": "vs7"`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run(StatusCommand("", "realserver", at, PrintRealserver)); err == nil || !strings.Contains(err.Error(),
		"another program") {
		t.Errorf("a director's socket, for a realserver: %v", err)
	}
	file := filepath.Join(t.TempDir(), "p")
	if _, err := run(ProfileCommand(at), "goroutine", "-o", file); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(file); err != nil || len(text) < 100 {
		t.Errorf("%d bytes of profile, %v", len(text), err)
	}
	if _, err := run(ProfileCommand(at), "nonsense"); err == nil {
		t.Error("an unknown kind of profile is accepted")
	}
}
