package routing

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

func fullRecords() records {
	return records{
		Sysctls: []sysctlRecord{{
			Key: "net/ipv4/ip_forward", Old: "0", Wrote: []string{"1"},
			Sides: []sideRecord{{Key: "net/ipv4/conf/eth0/forwarding", Link: 2, Old: "1"}},
		}},
		Links: []linkRecord{{Name: "vs0", Index: 7, OldMTU: 1500, NewMTU: 1480, OldQueue: 500, NewQueue: 3000,
			Bridge: 3, Raised: true}},
		Made:        []string{QuietLink},
		Unreachable: []routeRecord{{Table: 254, Dst: netip.MustParsePrefix("198.51.100.80/32"), Metric: 4294967294}},
		Addrs:       []addrRecord{{Link: "vs0", Index: 7, Prefix: netip.MustParsePrefix("198.51.100.80/32")}},
		Routes:      []routeRecord{{Table: 254, Dst: netip.MustParsePrefix("0.0.0.0/0"), Metric: 50, TOS: 16}},
		Rules: []ruleRecord{{Priority: 80, From: netip.MustParseAddr("2001:db8::80"), Table: 80},
			{Priority: 10, From: netip.IPv6Unspecified(), Local: true, Table: 81}},
	}
}

func fullJournal() journal {
	return journal{Version: journalVersion, Boot: "b", Netns: "cookie:01", Pid: 42, Did: fullRecords()}
}

func TestJournalRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	if err := fullJournal().write(path); err != nil {
		t.Fatal(err)
	}
	got, err := readJournal(path)
	if err != nil || !reflect.DeepEqual(got, fullJournal()) {
		t.Errorf("read %+v, %v", got, err)
	}
	if err := (journal{}).write(path); err != nil {
		t.Fatal(err)
	}
	if got, err := readJournal(path); err != nil || got.Version != 0 {
		t.Errorf("journal with nothing to undo: %+v, %v", got, err)
	}
}

// TestJournalHasASpare: a journal of any length can be written again without more space.
func TestJournalHasASpare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	j := fullJournal()
	least := int64(0) // least size of both files so far
	for _, routes := range []int{1, 3000, 1, 9000, 9001} {
		j.Did.Routes = make([]routeRecord, routes)
		for i := range j.Did.Routes {
			j.Did.Routes[i] = routeRecord{Table: 5080, Dst: netip.MustParsePrefix("192.0.2.0/24"), Metric: i}
		}
		if err := j.write(path); err != nil {
			t.Fatal(err)
		}
		got, err := readJournal(path)
		if err != nil || !reflect.DeepEqual(got, j) {
			t.Fatalf("%d routes: read %d, %v", routes, len(got.Did.Routes), err)
		}
		b, err := json.MarshalIndent(j, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		least = max(least, int64(len(b)))
		for _, p := range []string{path, tempName(path)} {
			if info, err := os.Stat(p); err != nil || info.Size() < least {
				t.Errorf("%d routes: %s has %d bytes, want %d at least (%v)", routes, p, info.Size(), least, err)
			}
		}
	}
}

func TestDamagedJournal(t *testing.T) {
	good, err := json.Marshal(fullJournal())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"blank":           "\n",
		"cut":             string(good[:len(good)/2]),
		"two":             string(good) + "{}",
		"unknown key":     `{"version":1,"boot":"b","netns":"n","extra":1}`,
		"another version": `{"version":2,"boot":"b","netns":"n"}`,
		"no place":        `{"version":1}`,
		"escaping sysctl": strings.Replace(string(good), "net/ipv4/ip_forward", "net/../kernel/core_pattern", 1),
		"other sysctl":    strings.Replace(string(good), "net/ipv4/conf/eth0/forwarding", "kernel/core_pattern", 1),
		"other device":    strings.Replace(string(good), QuietLink, "eth0", 1),
		"bad device":      strings.Replace(string(good), `"name":"vs0"`, `"name":"a/b"`, 1),
		"bad prefix":      strings.Replace(string(good), "198.51.100.80/32", "198.51.100.80/33", 1),
		"bad table":       strings.Replace(string(good), `"table":254`, `"table":-1`, 1),
		"bad priority":    strings.Replace(string(good), `"priority":80`, `"priority":40000`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, nil)
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(),
				"remove the file") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line that names %s", err, path)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("the evidence is gone: %v", err)
			}
		})
	}
}

// A power cut may leave a file that was made but not filled.
func TestEmptyJournalIsNone(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.json")
	for _, p := range []string{path, tempName(path)} {
		must(t, os.WriteFile(p, nil, 0o600))
	}
	m, err := Open(path, nil)
	must(t, err)
	must(t, m.Set(fullState()))
	must(t, m.Close())
	sameState(t, before, machineState(t))
	emptyDir(t, dir)
}

func TestJournalOfAnotherPlaceIsDiscarded(t *testing.T) {
	t.Parallel()
	newHost(t)
	boot, err := bootID()
	must(t, err)
	ns, err := openNamespace()
	must(t, err)
	defer ns.close()
	before := machineState(t)
	for name, j := range map[string]journal{
		"boot":      {Version: journalVersion, Boot: "another", Netns: ns.id},
		"namespace": {Version: journalVersion, Boot: boot, Netns: "cookie:00"},
	} {
		// An undo of this record would be visible.
		j.Did.Sysctls = []sysctlRecord{{Key: "net/ipv4/conf/all/arp_ignore", Old: "2", Wrote: []string{"0"}}}
		path := filepath.Join(t.TempDir(), "journal.json")
		must(t, j.write(path))
		m, err := Open(path, nil)
		if err != nil {
			t.Fatalf("another %s: %v", name, err)
		}
		sameState(t, before, machineState(t))
		if _, err := os.Stat(path); err == nil {
			t.Errorf("journal of another %s is still there", name)
		}
		must(t, m.Close())

		j.Boot, j.Netns = boot, ns.id
		must(t, j.write(path))
		m, err = Open(path, nil)
		must(t, err)
		if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "2" {
			t.Errorf("journal of this place was not heeded: arp_ignore = %s", got)
		}
		must(t, m.Close())
		setSysctl(t, "net/ipv4/conf/all/arp_ignore", "0")
	}
}

// TestUndoElsewhere: Undo leaves the journal of another namespace, and removes one of another boot.
func TestUndoElsewhere(t *testing.T) {
	t.Parallel()
	newHost(t)
	boot, err := bootID()
	must(t, err)
	ns, err := openNamespace()
	must(t, err)
	defer ns.close()
	before := machineState(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "d.journal")
	did := records{Sysctls: []sysctlRecord{{Key: "net/ipv4/conf/all/arp_ignore", Old: "2", Wrote: []string{"0"}}}}
	must(t, journal{Version: journalVersion, Boot: boot, Netns: "cookie:00", Pid: 7, Did: did}.write(path))
	for range 2 { // it does not depend on the journal's lock of the first
		if elsewhere, ok := errors.AsType[*ElsewhereError](Undo(path, nil)); !ok || elsewhere.PID != 7 {
			t.Errorf("%v, want an ElsewhereError of process 7", elsewhere)
		}
	}
	if j, err := readJournal(path); err != nil || j.Pid != 7 {
		t.Errorf("the journal is %+v, %v", j, err)
	}
	sameState(t, before, machineState(t))

	must(t, journal{Version: journalVersion, Boot: "another", Netns: "cookie:00", Did: did}.write(path))
	must(t, Undo(path, nil))
	sameState(t, before, machineState(t))
	emptyDir(t, dir)

	must(t, journal{Version: journalVersion, Boot: boot, Netns: ns.id, Did: did}.write(path))
	must(t, Undo(path, nil))
	if got := sysctl(t, "net/ipv4/conf/all/arp_ignore"); got != "2" {
		t.Errorf("arp_ignore = %s", got)
	}
	emptyDir(t, dir)
}

func TestRecordsMinus(t *testing.T) {
	r := fullRecords()
	if rest := r.minus(r); !rest.empty() {
		t.Errorf("r - r = %s", rest)
	}
	if rest := r.minus(records{}); !reflect.DeepEqual(rest, r) {
		t.Errorf("r - nothing = %s", rest)
	}
	if s := r.String(); s != "1 sysctl, 2 links, 1 address, 2 routes, 2 rules" {
		t.Errorf("summary %q", s)
	}
}

func TestLockAfterItsFileWasRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	first, err := acquireLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := acquireLock(path); err == nil {
		t.Fatal("two holders")
	}
	first.release()
	second, err := acquireLock(path)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	second.release()
}

// FuzzJournal checks that a journal that the parser accepts survives writing and reading, and names only sysctls of the
// network.
func FuzzJournal(f *testing.F) {
	good, err := json.Marshal(fullJournal())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"boot":"b","netns":"n","pid":1,"did":{}}`))
	f.Add([]byte(`{"version":1,"boot":"b","netns":"n","did":{"routes":[{"table":1,"dst":"::/0"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := parseJournal(b)
		if err != nil {
			return
		}
		for _, s := range j.Did.Sysctls {
			if p := filepath.Join(kernel.SysctlRoot, s.Key); !strings.HasPrefix(p, kernel.SysctlRoot+"net/") {
				t.Errorf("sysctl outside: %s", p)
			}
		}
		again, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		k, err := parseJournal(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		// Empty and missing lists are equal.
		if last, err := json.Marshal(k); err != nil || string(last) != string(again) {
			t.Errorf("%s became %s (%v)", again, last, err)
		}
	})
}

// TestJournalIsAFile: a path that is no regular file is refused at once.
func TestJournalIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	must(t, unix.Mkfifo(path, 0o600))
	if _, err := readJournal(path); err == nil || !strings.Contains(err.Error(), path+" is no regular file") {
		t.Error(err)
	}
}
