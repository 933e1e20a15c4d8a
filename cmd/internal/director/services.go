package director

import (
	"fmt"
	"net/netip"
	"reflect"

	"vstun/balancer"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/routing"
)

// services is cfg as the balancer takes it, with the way to each realserver as the kernel knows it now.
func services(cfg *config.Director) balancer.Config {
	mtus := map[netip.Addr]int{}
	var out balancer.Config
	for _, s := range cfg.Services {
		svc := balancer.Service{Name: s.Name, VIPs: s.VIPs, Protocol: packet.ProtoTCP, Scheduler: s.Scheduler}
		if s.Protocol == "udp" {
			svc.Protocol = packet.ProtoUDP
		}
		for _, p := range s.Ports {
			svc.Ports = append(svc.Ports, balancer.PortRange(p))
		}
		for _, r := range s.Realservers {
			mtu, known := mtus[r.Address]
			if !known {
				mtu = pathMTU(r.Address)
				mtus[r.Address] = mtu
			}
			svc.Realservers = append(svc.Realservers, balancer.Realserver{Address: r.Address, Weight: r.Weight, Source: cfg.Source, MTU: mtu})
		}
		out.Services = append(out.Services, svc)
	}
	return out
}

// pathMTU is the largest packet that the way to a takes. Where there is no way at present it is Ethernet's, for when there is one again.
func pathMTU(a netip.Addr) int {
	p, err := routing.PathTo(a)
	if err != nil {
		return 1500
	}
	return max(p.MTU, encap.MinMTU+encap.IPIPOverhead)
}

// reload reads the configuration file again and puts it in force. A fault changes nothing.
func (d *director) reload() {
	cfg, err := load(d.file)
	if err == nil {
		err = checkVIPs(cfg)
	}
	if err == nil {
		err = d.apply(cfg)
	}
	if err != nil {
		d.log.Error("reload: nothing changed", "file", d.file, "error", err)
		return
	}
	d.log.Info("reloaded", "file", d.file, "services", len(cfg.Services))
}

func (d *director) apply(cfg *config.Director) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.sameProgram(cfg); err != nil {
		return err
	}
	if err := d.bal.Apply(services(cfg)); err != nil {
		return err
	}
	if err := d.network.Set(network(cfg)); err != nil {
		// Back to where the routes still are.
		if undo := d.bal.Apply(services(d.cfg)); undo != nil {
			return fmt.Errorf("%w; and the services before it: %w", err, undo)
		}
		return err
	}
	d.cfg = cfg
	return nil
}

// sameProgram refuses changes of what is only read at the start.
func (d *director) sameProgram(cfg *config.Director) error {
	was, is := *d.cfg, *cfg
	was.Services, is.Services = nil, nil
	was.Source, is.Source = netip.Addr{}, netip.Addr{}
	if !reflect.DeepEqual(was, is) {
		return fmt.Errorf("only services and source can change while the director runs; for the other keys of [director] and for [connections] restart it")
	}
	return nil
}

// refreshPaths takes over what the kernel has learned about the ways to the realservers.
func (d *director) refreshPaths() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.bal.Apply(services(d.cfg)); err != nil {
		d.log.Error("the ways to the realservers are not taken over", "error", err)
	}
}
