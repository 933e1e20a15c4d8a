package main

import "fmt"

// Weights of the web servers in the demo's service "web".
func weights() []int { return []int{2, 1} }

const (
	httpPort = 80
	echoPort = 5353
)

const drawing = `vstun demo: a virtual address (VIP), one director, two web servers; hosts are network namespaces.

                          client  %[2]s
                             |        ^
       1  request to the VIP |        | 3  reply from the VIP
%26[1]s   v        |
       +-----------------------------------------------------------+
       |                          router                           |
       +-----------------------------------------------------------+
            |        ^               |        ^        |        ^
          1 |      2 |             2 |      3 |      2 |      3 |
            v        |               v        |        v        |
         director %-15[3]s web1 %-12[4]s web2 %[5]s
         picks a server for       each owns the VIP, unwraps 2, and answers
         each connection          the client directly

       2  the request inside a packet from %[3]s to the server that was picked (IPIP)

`

// draw prints the topology and the paths of request and reply.
func (s *show) draw() {
	if s.ha {
		s.printf(haDrawing, s.vip(), s.addr(s.lab.Client), s.addr(s.lab.Director), s.addr(s.lab.Backup),
			s.addr(s.lab.Webs[0]), s.addr(s.lab.Webs[1]))
		return
	}
	if s.lan {
		s.printf(lanDrawing, s.vip(), s.addr(s.lab.Client), s.addr(s.lab.Director), s.addr(s.lab.Webs[0]),
			s.addr(s.lab.Webs[1]), s.addr(s.lab.Insider))
		return
	}
	s.printf(drawing, s.vip(), s.addr(s.lab.Client), s.addr(s.lab.Director), s.addr(s.lab.Webs[0]),
		s.addr(s.lab.Webs[1]))
}

// directorTOML is the director's configuration.
func (s *show) directorTOML(socket string) string {
	return s.servicesTOML(socket) + s.pairTOML(firstPriority)
}

// backupTOML is the configuration of a pair's second director.
func (s *show) backupTOML(socket string) string {
	return s.servicesTOML(socket) + s.pairTOML(secondPriority)
}

// servicesTOML is the part of a director's configuration without a pair.
func (s *show) servicesTOML(socket string) string {
	text := fmt.Sprintf("[director]\ncontrol = %q\n", socket)
	service := func(name, protocol string, port int, scheduler string, weights []int) {
		text += fmt.Sprintf("\n[[service]]\nname = %q\nvip = %q\nprotocol = %q\nport = %d\nscheduler = %q\n",
			name, s.vip(), protocol, port, scheduler)
		if s.lan {
			text += "forward = \"dr\"\n"
		}
		for i, web := range s.lab.Webs {
			text += fmt.Sprintf("  [[service.realserver]]\n  address = %q\n  weight = %d\n", s.addr(web), weights[i])
		}
	}
	service("web", "tcp", httpPort, "wrr", weights())
	service("echo", "udp", echoPort, "rr", []int{1, 1})
	return text
}

// agentTOML is a realserver's configuration.
func (s *show) agentTOML(socket string) string {
	encap := `["ipip"]`
	if s.lan {
		encap = "[]"
	}
	directors := fmt.Sprintf("%q", s.addr(s.lab.Director))
	if s.ha {
		directors += fmt.Sprintf(", %q", s.addr(s.lab.Backup))
	}
	return fmt.Sprintf("[realserver]\nvips = [%q]\ndirectors = [%s]\nencap = %s\ncontrol = %q\n",
		s.vip(), directors, encap, socket)
}

// describeStay prints what to look at while everything runs.
func (s *show) describeStay(director, config string) {
	if s.ha {
		s.printf(haStayText, prefix, s.vip(), director, dir, s.url())
		return
	}
	if s.lan {
		s.printf(lanStayText, prefix, s.vip(), director, config, dir, s.url())
		return
	}
	s.printf(stayText, prefix, s.vip(), director, config, dir, s.url(), s.tunnelFilter())
}

// tunnelFilter returns tcpdump's filter for the tunnel's packets.
func (s *show) tunnelFilter() string {
	if s.ipv6 {
		return "ip6 proto 41"
	}
	return "ip proto 4"
}

// stayText takes the prefix, the VIP, the director's program and configuration, the directory, the URL, and a filter
// for the tunnel.
const stayText = `
Everything runs until Ctrl-C. Look around, as root, in another terminal:

  a request            ip netns exec %[1]s-client curl '%[6]s'
  into the director    ip netns exec %[1]s-director tcpdump -ni eth0 dst %[2]s
  out, encapsulated    ip netns exec %[1]s-director tcpdump -ni eth0 %[7]s
  replies passing it   ip netns exec %[1]s-director tcpdump -ni eth0 src %[2]s
  unwrapped at web1    ip netns exec %[1]s-web1 tcpdump -ni vs0
  director's status    %[3]s status -c %[4]s
  the rest             %[5]s has configurations, logs and control sockets
`
