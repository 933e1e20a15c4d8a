package config

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// maxQueues is the maximum number of queues of one TUN device: MAX_TAP_QUEUES in the kernel's drivers/net/tun.c.
const maxQueues = 256

// ParseDirector validates the text of a director.toml; name stands for the file in the messages. An error is of type
// *Errors and holds every fault.
func ParseDirector(name string, text []byte) (*Director, error) {
	root, ok := parse(name, text)
	if !ok {
		return nil, &root.file.faults
	}

	t := root.table("director", wantTable["director"])
	d := &Director{
		TUN:     t.device("tun"),
		Table:   readTable(t, 30325, 1),
		Queues:  t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256"),
		Offload: t.offload("offload"),
		Source:  readOneEach(t, "source"),
		Control: readControl(t, "director"),
		Metrics: readMetrics(t),
		Log:     t.level("log"),
		Silent:  t.oneOf("no_service", "reject", "drop") == "drop",

		NoResets:    t.oneOf("no_connection", "reset", "drop") == "drop",
		HashUnknown: t.oneOf("unknown_flows", "refuse", "hash") == "hash",
	}
	readDevice(t, d)
	readAnnounce(t, d)
	d.FastPath = readFastPath(t, d.TUN, d.LocalTUN())
	t.finish()
	d.Queues = onePerCPU(d.Queues)

	d.Connections = readConnections(root.table("connections", wantConnections), d.Control)
	tunnels := root.optional("wireguard", wantWireGuard)
	d.WireGuard = readWireGuard(tunnels, unprivilegedPort())
	services := newServiceReader(d.TAP, &d.WireGuard)
	d.Services = services.read(root)
	tunnelReader := newTunnelReader(map[string]string{d.TUN: "[director]", d.LocalTUN(): "[director]"}, &d.WireGuard,
		services.peers, services.refuseTaken)
	d.Tunnels, d.WireGuard.TunnelPeers = tunnelReader.read(root)
	d.WireGuard = services.finishWireGuard(tunnels, d.WireGuard, d.Services)
	tunnels.finish()
	services.checkSource(t, d.Source)
	warnUnhashed(t, d)
	d.VRRP = readVRRP(root, d.Services, d.TAP)
	d.Notify = readNotify(root, d)
	d.Sync = readSync(root)
	d.SecondChance = readDirectorChance(root, d)
	d.BGP = readBGP(root, d.Services)
	warnAnnounceWhen(services, d)
	root.finish()

	if len(root.file.faults) > 0 {
		return nil, &root.file.faults
	}
	d.Warnings, d.Places, d.Digest = root.file.warnings, root.file.places, Digest(text)
	return d, nil
}

// readMetrics reads the address of metrics. The director cannot bind a privileged port: it gives up
// CAP_NET_BIND_SERVICE before it binds.
func readMetrics(t *table) netip.AddrPort {
	at := t.listen("metrics", "127.0.0.1:9464")
	if least := unprivilegedPort(); at.IsValid() && int(at.Port()) < least {
		t.faultAt("metrics", "\"%v\" has port %d, to which the director has no right: want %d to 65535", at, at.Port(),
			least)
	}
	return at
}

// unprivilegedPort returns the least port that every program of this host may use: ip_unprivileged_port_start,
// ip-sysctl.rst.
func unprivilegedPort() int {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		return n
	}
	return 1024
}

// onePerCPU replaces 0, the default, with the number of CPUs.
func onePerCPU(queues int) int {
	if queues == 0 {
		return min(runtime.NumCPU(), maxQueues)
	}
	return queues
}
