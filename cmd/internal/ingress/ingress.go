// Package ingress keeps a program of the fast path attached to the devices by which packets come to this host.
package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"vstun/routing/query"
)

// Program is a program that can be attached to ingress of devices, by their interface indexes: a bpf.Director or
// bpf.Realserver.
type Program interface {
	Attach(device int) error
	Detach(device int) error // does nothing for a device that is gone
	Hook() string            // the kernel's way to attach it
}

// Devices are the devices that a Program is attached to. One goroutine uses them.
type Devices struct {
	program  Program
	attached map[int]query.Device // by index
	failed   map[int]string       // errors of the last call of Follow
	logged   map[int]query.Device // attached at the last call of Log
}

// New returns Devices without any.
func New(p Program) *Devices {
	return &Devices{program: p, attached: map[int]query.Device{}, failed: map[int]string{}}
}

// Select returns the devices that the program belongs to: those with names, or without names all uplinks.
func Select(all []query.Device, names []string) (selected []query.Device) {
	for _, d := range all {
		if len(names) == 0 && d.Uplink() || slices.Contains(names, d.Name) && d.Up {
			selected = append(selected, d)
		}
	}
	return selected
}

// LeftOut returns why devices by which packets may come are not among those of Select. With names these are the names
// of devices that are not there, or down. Without, ports of a VRF: hosts of two VRFs may have the same addresses, and
// the program does not look at the VRF.
func LeftOut(all []query.Device, names []string) (reasons []string) {
	for _, name := range names {
		i := slices.IndexFunc(all, func(d query.Device) bool { return d.Name == name })
		switch {
		case i < 0:
			reasons = append(reasons, fmt.Sprintf("there is no device %s, which fast_path_devices names", name))
		case !all[i].Up:
			reasons = append(reasons, name+" is down")
		}
	}
	if len(names) > 0 {
		return reasons
	}
	for _, d := range all {
		i := slices.IndexFunc(all, func(m query.Device) bool { return m.Index == d.Master && m.Kind == query.VRF })
		if i < 0 {
			continue
		}
		vrf := all[i].Name
		if d.Master = 0; d.Uplink() {
			reasons = append(reasons, fmt.Sprintf("%s is a port of VRF %s, and fast_path_devices does not name it",
				d.Name, vrf))
		}
	}
	return reasons
}

// Follow attaches the program to those of these devices that it is not attached to, and detaches it from all others. A
// device that was made anew with the same index does not have the program. Follow returns an error for each device at
// which that fails, but not the same error in successive calls. A device that failed is tried again by the next call.
func (d *Devices) Follow(devices []query.Device) error {
	failed, errs := map[int]string{}, []error(nil)
	note := func(device int, err error) bool {
		if err == nil {
			return true
		}
		failed[device] = err.Error()
		if d.failed[device] != err.Error() {
			errs = append(errs, err)
		}
		return false
	}
	for index, was := range maps.Clone(d.attached) {
		stays := slices.ContainsFunc(devices, func(is query.Device) bool {
			return is.Index == index && is.Removals == was.Removals
		})
		if !stays && note(index, d.program.Detach(index)) {
			delete(d.attached, index)
		}
	}
	for _, is := range devices {
		if _, known := d.attached[is.Index]; known || note(is.Index, d.program.Attach(is.Index)) {
			d.attached[is.Index] = is
		}
	}
	d.failed = failed
	return errors.Join(errs...)
}

// Log logs the devices that the program has been attached to since the last call, and those that it has left.
func (d *Devices) Log(log *slog.Logger) {
	if lost := without(d.logged, d.attached); len(lost) > 0 {
		log.Info("fast path detached", "devices", lost)
	}
	if added := without(d.attached, d.logged); len(added) > 0 {
		log.Info("fast path attached", "devices", added, "hook", d.program.Hook())
	}
	d.logged = maps.Clone(d.attached)
}

// without returns the names of the devices of all that others lacks, in ascending order.
func without(all, others map[int]query.Device) (names []string) {
	for index, d := range all {
		if other, ok := others[index]; !ok || other.Removals != d.Removals {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Names returns the names of the devices that the program is attached to, in ascending order.
func (d *Devices) Names() (names []string) {
	for _, at := range d.attached {
		names = append(names, at.Name)
	}
	slices.Sort(names)
	return names
}

// Faults returns the errors of the last call of Follow, in ascending order.
func (d *Devices) Faults() []string {
	return slices.Sorted(maps.Values(d.failed))
}
