package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// tryWriting returns the error that writing a sysctl would give, without writing it. It opens the file: only that runs
// the kernel's own check, which lets CAP_NET_ADMIN write files of root (Linux net/sysctl_net.c, net_ctl_permissions).
// faccessat2(2) is missing before Linux 5.8, and in some containers and sandboxes.
func tryWriting(key string) error {
	fd, err := unix.Open(kernel.SysctlRoot+key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// planSysctls plans writes for the values of want that differ. It compares each value as it will be after the writes
// planned before it. made lists devices that the program makes. They take their values from conf/default, which an
// operator can set before the device exists.
func planSysctls(want []Sysctl, own []sysctlRecord, links linkSet, made []Link) (
	steps []step, next []sysctlRecord, err error,
) {
	var errs []error
	pending := map[string]string{}
	read := func(key string) (string, error) {
		if v, ok := pending[key]; ok {
			return v, nil
		}
		return kernel.ReadSysctl(key)
	}
	for _, c := range withAdvertisements(want, own, links) {
		cur, err := read(c.Key)
		if errors.Is(err, fs.ErrNotExist) && c.Optional {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sysctl %s: %w", c.Key, err))
			continue
		}
		link := links.index(sysctlLink(c.Key))
		i := slices.IndexFunc(own, func(r sysctlRecord) bool { return r.Key == c.Key && r.Link == link })
		if ok, err := c.satisfiedBy(cur); err != nil || ok {
			if err != nil {
				errs = append(errs, err)
			} else if i >= 0 {
				next = append(next, own[i])
			}
			continue
		}
		if err := tryWriting(c.Key); err != nil && c.Cosmetic {
			continue
		} else if err != nil {
			errs = append(errs, unwritable(preset(c.Key, made), cur, c.Value, err))
			continue
		}
		rec := sysctlRecord{Key: c.Key, Link: link, Old: cur, Wrote: []string{c.Value}}
		effects, err := sideEffects(c.Key, c.Value)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range effects {
			if old, err := read(e.key); err == nil { // else the device went just now
				rec.Sides = append(rec.Sides, sideRecord{Key: e.key, Link: links.index(sysctlLink(e.key)), Old: old})
			}
		}
		if i >= 0 && slices.Contains(own[i].Wrote, cur) {
			// The value is ours, but want has another one. The value before ours is still the one to restore.
			rec = own[i]
			if !slices.Contains(rec.Wrote, c.Value) {
				rec.Wrote = append(slices.Clone(rec.Wrote), c.Value)
			}
		}
		next = append(next, rec)
		steps = append(steps, step{
			what: fmt.Sprintf("sysctl %s=%s (was %s)", c.Key, c.Value, cur),
			name: "sysctl " + sysctlName(c.Key), old: cur, new: c.Value,
			recorded: i >= 0 && slices.Contains(own[i].Wrote, c.Value),
			do:       func() error { return kernel.WriteSysctl(c.Key, c.Value) },
		})
		pending[c.Key] = c.Value
		for _, e := range effects {
			pending[e.key] = e.value
		}
	}
	return steps, next, errors.Join(errs...)
}

func unwritable(key, is, want string, err error) error {
	return fmt.Errorf("sysctl %s is %s, want %s, and can't be written: %w; set it before the start (check --sysctls "+
		"lists all), or make /proc/sys writable", sysctlName(key), is, want, err)
}

// CheckPresets returns an error for each sysctl of presets that has another value and lies on a read-only /proc/sys. It
// changes nothing.
func CheckPresets(presets []Sysctl) error {
	var errs []error
	for _, c := range presets {
		is, err := kernel.ReadSysctl(c.Key)
		if err != nil {
			continue // its reader says so
		}
		if ok, err := c.satisfiedBy(is); err != nil || ok {
			continue
		}
		if err := tryWriting(c.Key); errors.Is(err, unix.EROFS) {
			errs = append(errs, unwritable(c.Key, is, c.Value, err))
		}
	}
	return errors.Join(errs...)
}

// Presets lists the sysctls that must have their values before s is Set if /proc/sys can't be written. They are the
// sysctls that Set would read or write, except cosmetic ones. Devices of s.Links need not exist: a new device takes its
// values from conf/default, which the list names instead.
func Presets(s State) []Sysctl {
	s = s.clone()
	for i := range s.Sysctls {
		s.Sysctls[i].Key = preset(s.Sysctls[i].Key, s.Links)
	}
	for i, name := range s.Loose {
		if isMade(name, s.Links) {
			s.Loose[i] = defaultDevice
		}
	}
	all := withAdvertisements(withLoose(s.Sysctls, s.Loose, nil), nil, linkSet{})
	return slices.DeleteFunc(all, func(c Sysctl) bool {
		_, err := kernel.ReadSysctl(c.Key)
		return c.Cosmetic || c.Optional && errors.Is(err, fs.ErrNotExist)
	})
}

// defaultDevice is the name below conf/ of the values that new devices get.
const defaultDevice = "default"

// preset returns the key below conf/default from which a device of made takes the value of key. Other keys are
// unchanged.
func preset(key string, made []Link) string {
	parts := strings.Split(key, "/")
	if name := sysctlLink(key); name == "" || !isMade(name, made) {
		return key
	}
	parts[3] = defaultDevice
	return strings.Join(parts, "/")
}

func isMade(name string, made []Link) bool {
	return slices.ContainsFunc(made, func(l Link) bool { return l.Name == name })
}

// String returns c as a line of sysctl.d(5): net.ipv4.ip_forward = 1.
func (c Sysctl) String() string { return sysctlName(c.Key) + " = " + c.Value }

// sysctlName returns the key as sysctl(8) prints it: with dots, or with slashes if a device's name has a dot.
func sysctlName(key string) string {
	if strings.Contains(key, ".") {
		return key
	}
	return strings.ReplaceAll(key, "/", ".")
}

const forwarding6 = "net/ipv6/conf/all/forwarding"

// withAdvertisements inserts an accept_ra of 2 before IPv6 forwarding, for each device that takes router
// advertisements. A device that forwards takes them only with that value. Otherwise the kernel drops the device's
// default routes at once (net/ipv6/addrconf.c, addrconf_fixup_forwarding; RFC 4861, section 6.2.2). Devices that
// forwarded before stay as they are, and so do devices whose accept_ra is in want.
func withAdvertisements(want []Sysctl, own []sysctlRecord, links linkSet) []Sysctl {
	at := slices.IndexFunc(want, func(c Sysctl) bool { return c.Key == forwarding6 && c.Value == "1" })
	if at < 0 {
		return want
	}
	var was sysctlRecord
	if i := slices.IndexFunc(own, func(r sysctlRecord) bool { return r.Key == forwarding6 }); i >= 0 {
		was = own[i]
	} else if cur, err := kernel.ReadSysctl(forwarding6); err != nil || cur == "1" {
		return want
	}
	devices, err := perDevice("net/ipv6/conf/", "accept_ra", "2")
	if err != nil {
		return want // forwarding itself will be missing, too
	}
	var keep []Sysctl
	for _, d := range devices {
		device := sysctlLink(d.key)
		forwards := path.Dir(d.key) + "/forwarding"
		now, err1 := kernel.ReadSysctl(forwards)
		cur, err2 := kernel.ReadSysctl(d.key)
		if err1 != nil || err2 != nil || device == "lo" { // or it went just now
			continue
		}
		if was.Key != "" {
			now = was.before(forwards, links, now)
		}
		ours := slices.ContainsFunc(own, func(r sysctlRecord) bool {
			return r.Key == d.key &&
				r.Link == links.index(device)
		})
		named := slices.ContainsFunc(want, func(c Sysctl) bool { return c.Key == d.key })
		if now == "0" && (cur == "1" || cur == d.value && ours) && !named {
			keep = append(keep, Sysctl{Key: d.key, Value: d.value, Optional: true})
		}
	}
	return slices.Insert(slices.Clone(want), at, keep...)
}

func (c Sysctl) satisfiedBy(cur string) (bool, error) {
	if cur == c.Value || !c.AtLeast {
		return cur == c.Value, nil
	}
	have, err := strconv.Atoi(cur)
	if err != nil {
		return false, fmt.Errorf("sysctl %s is %q, which is no number to compare with %s", c.Key, cur, c.Value)
	}
	want, err := strconv.Atoi(c.Value)
	return have >= want, err
}

// undoSysctl restores r if the value is still ours. A value that another program has written since stays.
func undoSysctl(r sysctlRecord, links linkSet) error {
	r = r.follow(links)
	if name := sysctlLink(r.Key); name != "" && links.index(name) != r.Link {
		return nil // the device is gone, and with it the value
	}
	cur, err := kernel.ReadSysctl(r.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", r.Key, err)
	}
	// The old value may be the result of an undo that was killed half-way. The side effects are checked all the same.
	if cur != r.Old && !slices.Contains(r.Wrote, cur) {
		return nil
	}
	back, err := sidesAfter(r, cur, links)
	if err != nil {
		return err
	}
	if cur != r.Old {
		if err := kernel.WriteSysctl(r.Key, r.Old); err != nil {
			return fmt.Errorf("restore sysctl %s=%s: %w", r.Key, r.Old, err)
		}
	}
	var errs []error
	for _, b := range back {
		now, err := kernel.ReadSysctl(b.key)
		if err == nil && now != b.value {
			err = kernel.WriteSysctl(b.key, b.value)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("restore sysctl %s=%s: %w", b.key, b.value, err))
		}
	}
	return errors.Join(errs...)
}

// sidesAfter returns the values that the side effects of r must have after r is restored. cur is r's value now. A
// device that was made since r took its value from conf/default, so it gets the former value of conf/default.
func sidesAfter(r sysctlRecord, cur string, links linkSet) ([]assignment, error) {
	effects, err := sideEffects(r.Key, cur)
	if err != nil {
		return nil, err
	}
	var back []assignment
	for _, e := range effects {
		now, err := kernel.ReadSysctl(e.key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sysctl %s: %w", e.key, err)
		}
		if now == e.value { // as the kernel set it; otherwise another program has written it since
			now = r.before(e.key, links, now)
		}
		back = append(back, assignment{e.key, now})
	}
	return back, nil
}

// before returns the value that key had when r was recorded. For a device that is newer than r, it returns the former
// value of conf/default. It returns otherwise if r has neither.
func (r sysctlRecord) before(key string, links linkSet, otherwise string) string {
	for _, s := range r.Sides {
		if s.Key == key && s.Link == links.index(sysctlLink(key)) {
			return s.Old
		}
	}
	parts := strings.Split(key, "/")
	if len(parts) != 5 {
		return otherwise
	}
	parts[3] = "default"
	def := strings.Join(parts, "/")
	if r.Key == def {
		return r.Old
	}
	for _, s := range r.Sides {
		if s.Key == def {
			return s.Old
		}
	}
	return otherwise
}

type assignment struct{ key, value string }

// sideEffects lists the other values that the kernel sets when key=value is written: inet_forward_change and
// devinet_conf_proc in net/ipv4/devinet.c, addrconf_fixup_forwarding in net/ipv6/addrconf.c.
func sideEffects(key, value string) ([]assignment, error) {
	dir, name := path.Split(key)
	switch {
	case key == "net/ipv4/ip_forward" || key == "net/ipv4/conf/all/forwarding":
		redirects := "0"
		if value == "0" {
			redirects = "1"
		}
		devs, err := perDevice("net/ipv4/conf/", "forwarding", value)
		return append([]assignment{
			{"net/ipv4/conf/all/accept_redirects", redirects},
			{"net/ipv4/conf/default/forwarding", value},
		}, devs...), err
	case key == forwarding6:
		devs, err := perDevice("net/ipv6/conf/", "forwarding", value)
		return append([]assignment{{"net/ipv6/conf/default/forwarding", value}}, devs...), err
	case dir == "net/ipv4/conf/default/" && name != "forwarding":
		return perDevice("net/ipv4/conf/", name, value)
	}
	return nil, nil
}

func perDevice(dir, name, value string) ([]assignment, error) {
	entries, err := os.ReadDir(kernel.SysctlRoot + dir)
	if err != nil {
		return nil, fmt.Errorf("sysctl %s: %w", dir, err)
	}
	var list []assignment
	for _, e := range entries {
		if dev := e.Name(); dev != "all" && dev != "default" {
			list = append(list, assignment{dir + dev + "/" + name, value})
		}
	}
	return list, nil
}

// sysctlLink returns the device in a key such as net/ipv4/conf/eth0/rp_filter, or "".
func sysctlLink(key string) string {
	parts := strings.Split(key, "/")
	if len(parts) != 5 || (parts[2] != "conf" && parts[2] != "neigh") || parts[3] == "all" || parts[3] == "default" {
		return ""
	}
	return parts[3]
}

// follow returns r with the present names of its devices, which may have been renamed. The kernel renames the files of
// their sysctls with them, and keeps the values.
func (r sysctlRecord) follow(links linkSet) sysctlRecord {
	r.Key, r.Sides = links.follow(r.Key, r.Link), slices.Clone(r.Sides)
	for i, s := range r.Sides {
		r.Sides[i].Key = links.follow(s.Key, s.Link)
	}
	return r
}

// follow returns the key of a sysctl of the device with this index, by the device's present name. It returns a key of
// no device, and of a device that is gone, as it is.
func (s linkSet) follow(key string, index int) string {
	name := sysctlLink(key)
	if name == "" || s.index(name) == index {
		return key
	}
	l := s.byIndex(index)
	if l == nil {
		return key
	}
	parts := strings.Split(key, "/")
	parts[3] = l.Attrs().Name
	return strings.Join(parts, "/")
}
