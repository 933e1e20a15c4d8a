package cli

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// printServices writes the services and their realservers, in the columns of ipvsadm and further ones. Thresholds and
// health have columns if any realserver has them. A service's line ignores the columns.
func printServices(w io.Writer, services []api.Service, announced []api.Announced, width int) {
	thresholds := slices.ContainsFunc(services, func(s api.Service) bool {
		return slices.ContainsFunc(s.Realservers, func(r api.Realserver) bool { return r.Upper > 0 })
	})
	checked := slices.ContainsFunc(services, func(s api.Service) bool {
		return slices.ContainsFunc(s.Realservers, func(r api.Realserver) bool {
			return r.Check != nil || r.Unreachable != ""
		})
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
			cells := realserverCells(&r, thresholds)
			if checked {
				cells = slices.Insert(cells, 3, r.Health)
			}
			rows = append(rows, cells)
		}
	}

	g := layout(width, rows...)
	fmt.Fprintln(w, "Prot Address:Port Scheduler Flags")
	g.print(w, margin, columns)
	rows = rows[1:]
	by := announcements(announced)
	for _, s := range services {
		for _, vip := range s.VIPs {
			fmt.Fprintln(w,
				Wrapped(fmt.Sprintf("%s %s %s", strings.ToUpper(s.Protocol),
					net.JoinHostPort(vip, strings.Join(s.Ports, ",")), serviceSettings(&s, by[vip])), width, "    "))
		}
		for range s.Realservers {
			g.print(w, margin, rows[0])
			rows = rows[1:]
		}
	}
}

// realserverCells returns r's row of the table.
func realserverCells(r *api.Realserver, thresholds bool) []string {
	cells := []string{r.Name(), r.Method(), fmt.Sprint(r.Weight)}
	if thresholds {
		cells = append(cells, fmt.Sprint(r.Upper), fmt.Sprint(r.Lower))
	}
	return append(cells, fmt.Sprint(r.Active), fmt.Sprint(r.Inactive), fmt.Sprint(r.Connections),
		fmt.Sprint(r.Forwarded.Packets), fmt.Sprint(r.Forwarded.Bytes), remark(r))
}

// serviceSettings returns the part of a service's line behind its address. announced is about that address.
func serviceSettings(s *api.Service, announced string) string {
	text := s.Settings() + " (" + s.Name + ")" + announced
	if s.Health == "down" {
		text += fmt.Sprintf(", DOWN: weight %d is up, quorum %d", s.WeightUp, s.Quorum)
	}
	if s.Sorry {
		text += ", sorry server in use"
	}
	return text
}

// announcements returns the part of a service's line about its VIP, by VIPs: ", announced on eth0".
func announcements(announced []api.Announced) map[string]string {
	by := make(map[string]string, len(announced))
	for _, a := range announced {
		by[a.VIP] = ", announced on " + strings.Join(a.Devices, ", ")
		if len(a.Conflicts) > 0 {
			by[a.VIP] += ", CONFLICT"
		}
	}
	return by
}

// printConflicts writes which other hosts use VIPs.
func printConflicts(w io.Writer, announced []api.Announced) {
	title := "\nused by other hosts, too:\n"
	for _, a := range announced {
		for _, c := range a.Conflicts {
			fmt.Fprintf(w, "%s  %s\ton %s\tby %s\t%s\tlast %v ago\n", title, a.VIP, c.Device, c.MAC,
				words.Count(c.Packets, "packet"), uptime(c.Last))
			title = ""
		}
	}
}
