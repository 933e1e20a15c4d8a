package control

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// printServices writes the services and their realservers: ipvsadm's columns, those of the thresholds where there are
// any, and ours. A service's line runs across the columns.
func printServices(w io.Writer, services []Service, width int) {
	thresholds := slices.ContainsFunc(services, func(s Service) bool {
		return slices.ContainsFunc(s.Realservers, func(r Realserver) bool { return r.Upper > 0 })
	})
	checked := slices.ContainsFunc(services, func(s Service) bool {
		return slices.ContainsFunc(s.Realservers, func(r Realserver) bool { return r.Check != nil })
	})
	columns := []string{"RemoteAddress", "Forward", "Weight", "ActiveConn", "InActConn", "Conns", "InPkts", "InBytes",
		""}
	if thresholds {
		columns = slices.Insert(columns, 3, "Upper", "Lower")
	}
	if checked {
		columns = slices.Insert(columns, 3, "Health")
	}
	rows := [][]string{columns}
	for _, s := range services {
		for _, r := range s.Realservers {
			cells := r.cells(thresholds)
			if checked {
				cells = slices.Insert(cells, 3, r.Health)
			}
			rows = append(rows, cells)
		}
	}

	g := layOut(width, rows...)
	fmt.Fprintln(w, "Prot Address:Port Scheduler Flags")
	g.print(w, margin, columns)
	rows = rows[1:]
	for _, s := range services {
		for _, vip := range s.VIPs {
			fmt.Fprintln(w,
				Wrapped(fmt.Sprintf("%s %s:%s %s", strings.ToUpper(s.Protocol), bracketed(vip),
					strings.Join(s.Ports, ","), s.settings()), width, "    "))
		}
		for range s.Realservers {
			g.print(w, margin, rows[0])
			rows = rows[1:]
		}
	}
}

// cells is a realserver's row of the table.
func (r *Realserver) cells(thresholds bool) []string {
	cells := []string{r.Address, r.Forward(), fmt.Sprint(r.Weight)}
	if thresholds {
		cells = append(cells, fmt.Sprint(r.Upper), fmt.Sprint(r.Lower))
	}
	return append(cells, fmt.Sprint(r.Active), fmt.Sprint(r.Inactive), fmt.Sprint(r.Connections),
		fmt.Sprint(r.Forwarded.Packets), fmt.Sprint(r.Forwarded.Bytes), r.remark())
}

// Forward names the tunnel: "gre,key=7,csum".
func (r *Realserver) Forward() string {
	name := r.Encap
	if r.EncapKey != nil {
		name += fmt.Sprintf(",key=%d", *r.EncapKey)
	}
	if r.EncapChecksum {
		name += ",csum"
	}
	return name
}

// Title is a service's name with what it is found by: "web tcp 198.51.100.80:80 wlc".
func (s *Service) Title() string {
	first := ""
	if len(s.VIPs) > 0 {
		first = bracketed(s.VIPs[0]) + ":" + strings.Join(s.Ports, ",")
	}
	if n := len(s.VIPs) - 1; n > 0 {
		first += fmt.Sprintf(" +%d", n)
	}
	return strings.Join([]string{s.Name, s.Protocol, first, s.Scheduler}, " ")
}

// Settings is the scheduler and what else a service's line says, in the words of ipvsadm: "sh (sh-port) persistent 300
// ops".
func (s *Service) Settings() string {
	words := []string{s.Scheduler}
	if len(s.SchedulerFlags) > 0 {
		words = append(words, "("+strings.Join(s.SchedulerFlags, ",")+")")
	}
	if p := s.Persistence; p != nil {
		words = append(words, fmt.Sprintf("persistent %d", time.Duration(p.Timeout*float64(time.Second))/time.Second))
		if p.Netmask != 32 {
			words = append(words, fmt.Sprintf("netmask %d", p.Netmask))
		}
		if p.Netmask6 != 128 {
			words = append(words, fmt.Sprintf("netmask6 %d", p.Netmask6))
		}
	}
	if s.OnePacket {
		words = append(words, "ops")
	}
	return strings.Join(words, " ")
}

// settings is the rest of a service's line.
func (s *Service) settings() string {
	words := []string{s.Settings(), "(" + s.Name + ")"}
	if s.Health == "down" {
		words = append(words, fmt.Sprintf("DOWN: weight %d is up, quorum %d", s.WeightUp, s.Quorum))
	}
	if s.Sorry {
		words = append(words, "sorry server")
	}
	return strings.Join(words, " ")
}

// bracketed is an address as it stands before a port.
func bracketed(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}
