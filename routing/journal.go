package routing

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// records lists changes and the values before them, which is enough to undo the changes in another process. The journal
// is written before the changes, so a listed change may not have been made.
type records struct {
	Unreachable []routeRecord  `json:"unreachable,omitempty"` // and blackholes: without a device
	Made        []string       `json:"made,omitempty"`        // devices: QuietLink or none
	Sysctls     []sysctlRecord `json:"sysctls,omitempty"`
	Links       []linkRecord   `json:"links,omitempty"`
	Addrs       []addrRecord   `json:"addrs,omitempty"`
	Routes      []routeRecord  `json:"routes,omitempty"` // the others
	Rules       []ruleRecord   `json:"rules,omitempty"`
}

// sysctlRecord is a value that we wrote.
type sysctlRecord struct {
	Key   string       `json:"key"`
	Link  int          `json:"link,omitempty"` // index of the device that it belongs to
	Old   string       `json:"old"`
	Wrote []string     `json:"wrote"` // each value that may be there because of us
	Sides []sideRecord `json:"sides,omitempty"`
}

// sideRecord is a value that the kernel rewrote because we wrote another.
type sideRecord struct {
	Key  string `json:"key"`
	Link int    `json:"link,omitempty"`
	Old  string `json:"old"`
}

// linkRecord is what we changed on one device. The index distinguishes it from a later device of the same name.
type linkRecord struct {
	Name     string `json:"name"`
	Index    int    `json:"index"`
	OldMTU   int    `json:"old_mtu,omitempty"`
	NewMTU   int    `json:"new_mtu,omitempty"` // 0: not changed
	OldQueue int    `json:"old_txqueuelen,omitempty"`
	NewQueue int    `json:"new_txqueuelen,omitempty"` // 0: not changed
	Bridge   int    `json:"bridge,omitempty"`         // index of the bridge whose port we made it; 0: none
	Raised   bool   `json:"raised,omitempty"`         // was down
}

// addrRecord is an address that we added.
type addrRecord struct {
	Link   string       `json:"link"`
	Index  int          `json:"index"`
	Prefix netip.Prefix `json:"prefix"`
}

// routeRecord is the key of routes that we added. They have Protocol. Several IPv4 routes may have one key.
type routeRecord struct {
	Table  int          `json:"table"`
	Dst    netip.Prefix `json:"dst"`
	Src    netip.Prefix `json:"src,omitzero"` // IPv6: only for packets from there; the zero Prefix: for all
	Metric int          `json:"metric,omitempty"`
	TOS    int          `json:"tos,omitempty"`
}

// compare orders records by table, destination, source, metric and TOS.
func (r routeRecord) compare(o routeRecord) int {
	return cmp.Or(cmp.Compare(r.Table, o.Table),
		r.Dst.Addr().Compare(o.Dst.Addr()), cmp.Compare(r.Dst.Bits(), o.Dst.Bits()),
		r.Src.Addr().Compare(o.Src.Addr()), cmp.Compare(r.Src.Bits(), o.Src.Bits()), cmp.Compare(r.Metric, o.Metric),
		cmp.Compare(r.TOS, o.TOS))
}

// ruleRecord is a rule that we added: packets from From look up Table, or go on with the rules of the priority Goto.
// The unspecified address is any of its family. With Local the rule is for this host's own packets; with Link only for
// sockets that ask for that output device.
type ruleRecord struct {
	Priority int        `json:"priority"`
	From     netip.Addr `json:"from"`
	Bits     int        `json:"bits,omitempty"`  // prefix length of From; 0: From alone, or any address
	Local    bool       `json:"local,omitempty"` // iif lo
	In       string     `json:"in,omitempty"`    // another iif
	Link     string     `json:"link,omitempty"`  // oif
	Protocol uint8      `json:"protocol,omitempty"`
	SrcPorts PortRange  `json:"src_ports,omitzero"`
	Table    int        `json:"table,omitempty"`
	Goto     int        `json:"goto,omitempty"`
}

func (r records) count() int {
	return len(r.Unreachable) + len(r.Made) + len(r.Sysctls) + len(r.Links) + len(r.Addrs) + len(r.Routes) +
		len(r.Rules)
}

func (r records) empty() bool { return r.count() == 0 }

// minus returns the records of r that are not in o. A route that is replaced by an unreachable one, or the reverse, is
// the same route.
func (r records) minus(o records) records {
	routes := slices.Concat(o.Unreachable, o.Routes)
	return records{
		Unreachable: without(r.Unreachable, routes, func(r routeRecord) any { return r }),
		Made:        without(r.Made, o.Made, func(name string) any { return name }),
		Sysctls:     without(r.Sysctls, o.Sysctls, func(c sysctlRecord) any { return [2]any{c.Key, c.Link} }),
		Links:       without(r.Links, o.Links, func(l linkRecord) any { return l.Index }),
		Addrs:       without(r.Addrs, o.Addrs, func(a addrRecord) any { return a }),
		Routes:      without(r.Routes, routes, func(r routeRecord) any { return r }),
		Rules:       without(r.Rules, o.Rules, func(r ruleRecord) any { return r }),
	}
}

// plus returns r's records, followed by o's.
func (r records) plus(o records) records {
	return records{
		Unreachable: slices.Concat(r.Unreachable, o.Unreachable),
		Made:        slices.Concat(r.Made, o.Made),
		Sysctls:     slices.Concat(r.Sysctls, o.Sysctls),
		Links:       slices.Concat(r.Links, o.Links),
		Addrs:       slices.Concat(r.Addrs, o.Addrs),
		Routes:      slices.Concat(r.Routes, o.Routes),
		Rules:       slices.Concat(r.Rules, o.Rules),
	}
}

func without[T any](list, gone []T, key func(T) any) []T {
	if len(list) == 0 {
		return nil
	}
	drop := make(map[any]bool, len(gone))
	for _, g := range gone {
		drop[key(g)] = true
	}
	var rest []T
	for _, v := range list {
		if !drop[key(v)] {
			rest = append(rest, v)
		}
	}
	return rest
}

// names returns the names of the changes, for the log.
func (r records) names() (names []string) {
	for _, c := range r.Sysctls {
		names = append(names, "sysctl "+sysctlName(c.Key))
	}
	for _, name := range r.Made {
		names = append(names, "device "+name)
	}
	for _, l := range r.Links {
		names = append(names, "device "+l.Name)
	}
	for _, a := range r.Addrs {
		names = append(names, fmt.Sprintf("address %s dev %s", a.Prefix, a.Link))
	}
	for _, t := range slices.Concat(r.Unreachable, r.Routes) {
		names = append(names, "route "+t.String())
	}
	for _, u := range r.Rules {
		names = append(names, "rule "+u.String())
	}
	return names
}

// String is a summary for the log.
func (r records) String() string {
	var s []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{len(r.Sysctls), "sysctl"}, {len(r.Made) + len(r.Links), "link"}, {len(r.Addrs), "address"},
		{len(r.Unreachable) + len(r.Routes), "route"}, {len(r.Rules), "rule"},
	} {
		switch {
		case c.n == 1:
			s = append(s, "1 "+c.what)
		case c.n > 1 && c.what == "address":
			s = append(s, fmt.Sprintf("%d addresses", c.n))
		case c.n > 1:
			s = append(s, fmt.Sprintf("%d %ss", c.n, c.what))
		}
	}
	return strings.Join(s, ", ")
}

const journalVersion = 1

// journal is the content of the file. Its records are valid only in the same network namespace and until the next boot.
type journal struct {
	Version int     `json:"version"`
	Boot    string  `json:"boot"`
	Netns   string  `json:"netns"`
	Pid     int     `json:"pid"`
	Did     records `json:"did"`
}

// journalRoom is the number of bytes by which the journal can grow before it needs more space of the file system.
const journalRoom = 64 << 10

// write replaces the file at path in one step, or removes it if there is nothing to undo. A crash of the machine undoes
// the changes, but it must not leave a damaged file.
//
// A second file beside the journal has the same size. Each write fills the second file and exchanges the two
// (renameat2(2)). So a later write needs no new space on a file system that writes in place and can exchange files.
// Both files are padded with blanks. google/renameio makes a new file for each write, and so fails on a full disk.
func (j journal) write(path string) (err error) {
	if j.Did.empty() {
		return removeJournal(path)
	}
	if _, missing := os.Lstat(path); errors.Is(missing, fs.ErrNotExist) { // no change has been made yet
		defer func() {
			if err != nil {
				err = errors.Join(err, removeJournal(path))
			}
		}()
	}
	b, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return fmt.Errorf("journal %s: %w", path, err)
	}
	tmp := tempName(path)
	b = append(b, '\n')
	if err := writeSynced(tmp, b); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	exchanged := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if exchanged != nil { // there is no journal yet, or the file system can't exchange files
		if err := os.Rename(tmp, path); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	if info, err := os.Stat(tmp); err != nil || int(info.Size()) < len(b) {
		// The next write needs this space. This write is done.
		if err := writeSynced(tmp, b); err != nil && exchanged != nil {
			return fmt.Errorf("journal: reserve space for the next: %w", err)
		}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// writeSynced writes b to the file at path, pads it with blanks, and syncs it. The file keeps its size if b fits in.
// Otherwise it becomes larger than b by at least journalRoom.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		size := int(info.Size())
		if len(b) > size {
			size = (len(b)/journalRoom + 2) * journalRoom
		}
		_, err = f.Write(slices.Concat(b, bytes.Repeat([]byte(" "), size-len(b))))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) { // the file system can't sync directories
		err = nil
	}
	return errors.Join(err, d.Close())
}

func tempName(path string) string { return path + ".new" }

func removeJournal(path string) error {
	for _, p := range []string{tempName(path), path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("journal: %w", err)
		}
	}
	return nil
}

// readJournal returns the journal at path, or the zero journal if there is none. An empty file counts as none: a crash
// of the machine may leave one, and after a crash there is nothing to undo.
func readJournal(path string) (journal, error) {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() { // a FIFO would wait for a writer
		return journal{}, fmt.Errorf("journal %s is no regular file: remove it", path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return journal{}, nil
	}
	if err != nil {
		return journal{}, fmt.Errorf("journal: %w", err)
	}
	j, err := parseJournal(b)
	if err != nil {
		return journal{}, fmt.Errorf("journal %s is damaged: %w; undo what is left by hand (ip route show table all "+
			"proto %d; ip rule), then remove the file",
			path, err, Protocol)
	}
	return j, nil
}

// parseJournal rejects unknown fields and bad values, since root acts on the journal that it returns.
func parseJournal(b []byte) (journal, error) {
	var j journal
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return journal{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return journal{}, errors.New("more than one value in it")
	}
	if j.Version != journalVersion {
		return journal{}, fmt.Errorf("version %d, want %d", j.Version, journalVersion)
	}
	if j.Boot == "" || j.Netns == "" {
		return journal{}, errors.New("it does not say where it belongs")
	}
	return j, j.Did.validate()
}

func (r records) validate() error {
	for _, name := range r.Made {
		if name != QuietLink {
			return fmt.Errorf("bad device %q", name)
		}
	}
	for _, c := range r.Sysctls {
		if !validKey(c.Key) || !validValue(c.Old) || len(c.Wrote) == 0 {
			return fmt.Errorf("bad sysctl %q", c.Key)
		}
		for _, s := range c.Sides {
			if !validKey(s.Key) || !validValue(s.Old) {
				return fmt.Errorf("bad sysctl %q", s.Key)
			}
		}
	}
	for _, l := range r.Links {
		if !validLink(l.Name) || l.Index <= 0 || l.OldMTU < 0 || l.OldQueue < 0 || l.Bridge < 0 {
			return fmt.Errorf("bad link %q", l.Name)
		}
	}
	for _, a := range r.Addrs {
		if !validLink(a.Link) || a.Index <= 0 || !validPrefix(a.Prefix) {
			return fmt.Errorf("bad address %s", a.Prefix)
		}
	}
	for _, t := range slices.Concat(r.Unreachable, r.Routes) {
		if !inRange(t.Table, 1, maxID) || !validPrefix(t.Dst) || t.Src != (netip.Prefix{}) && !validPrefix(t.Src) ||
			t.Metric < 0 || t.TOS < 0 {
			return fmt.Errorf("bad route %s", t.Dst)
		}
	}
	for _, u := range r.Rules {
		if !u.valid() {
			return fmt.Errorf("bad rule from %s", u.From)
		}
	}
	return nil
}

// bootID returns an id that changes with every boot (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func makeJournalDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("directory of the journal: %w", err)
	}
	return nil
}
