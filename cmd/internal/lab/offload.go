package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// deferIRQs is the number of empty polls after which a link with GRO delivers a held GSO packet: napi_defer_hard_irqs.
const deferIRQs = 4

// segmentation are the features that let GSO packets of TCP leave a link unsegmented, by ethtool's names.
var segmentation = []string{"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
	"tx-tcp6-segmentation", "tx-generic-segmentation"}

// offload applies Link's Segmented and GRO.
func (w *wire) offload() error {
	if w.Segmented {
		if err := w.near.host.Do(func() error { return setFeatures(w.near.name, false, segmentation...) }); err != nil {
			return fmt.Errorf("%s: switch segmentation offload off: %w", w.near.host.Name, err)
		}
	}
	if w.GRO == 0 {
		return nil
	}
	err := w.far.host.Do(func() error {
		if err := setFeatures(w.far.name, true, "rx-gro"); err != nil {
			return err
		}
		return holdGRO(w.far.name, w.GRO)
	})
	if err != nil {
		return fmt.Errorf("%s: switch GRO on: %w", w.far.host.Name, err)
	}
	return nil
}

// Offload switches an offload of a host's link to the router on or off, by ethtool's name for it
// ("tx-udp-segmentation").
func (h *Host) Offload(feature string, on bool) error {
	if err := h.Do(func() error { return setFeatures(uplink, on, feature) }); err != nil {
		return fmt.Errorf("%s: switch %s of %s: %w", h.Name, feature, uplink, err)
	}
	return nil
}

// setFeatures switches features of a link of this thread's namespace.
func setFeatures(link string, on bool, features ...string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer e.Close()
	set := make(map[string]bool, len(features))
	for _, f := range features {
		set[f] = on
	}
	return e.Change(link, set)
}

// holdGRO sets the time for which a link of this thread's namespace holds GSO packets to make them larger. The values
// exist only in sysfs, and only a new mount of sysfs shows this namespace's devices. So the thread gets a mount
// namespace, and only Do may use it afterwards.
func holdGRO(link string, hold time.Duration) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	for file, value := range map[string]int64{"gro_flush_timeout": hold.Nanoseconds(),
		"napi_defer_hard_irqs": deferIRQs} {
		if err := os.WriteFile(filepath.Join("/sys/class/net", link, file), []byte(strconv.FormatInt(value, 10)),
			0); err != nil {
			return err
		}
	}
	return nil
}
