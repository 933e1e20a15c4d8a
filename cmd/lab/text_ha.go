package main

import "fmt"

// Priorities of the pair's directors in VRRP: the first one is the master if it can be.
const (
	firstPriority  = 150
	secondPriority = 100
)

// haDrawing takes the VIP and the addresses of client, director, director2, web1 and web2.
const haDrawing = `vstun demo: two directors for one virtual address (VIP), by VRRP and sync. One is killed.

                          client  %[2]s
                             |
       +-----------------------------------------------------------+
       |                          router                           |
       +-----------------------------------------------------------+
                             |
       ====================== one subnet: a switch ==================
          |               |               |               |
       director        director2       web1            web2
       %-15[3]s %-15[4]s %-15[5]s %[6]s
       the master:     has the         own the VIP, and answer clients
       answers ARP and master's        directly
       ND for the VIP  connections     %[1]s

`

// haStayText takes the prefix, the VIP, the director's program, the directory and the URL.
const haStayText = `
Everything runs until Ctrl-C. A director that ends is started again. Look around, as root, in
another terminal:

  a request            ip netns exec %[1]s-client curl '%[5]s'
  who has the VIP      ip netns exec %[1]s-insider ip neigh show %[2]s
  roles and peers      %[3]s peers -c %[4]s/director.toml
  its connections      %[3]s connections -c %[4]s/director2.toml
  planned work         %[3]s standby -c %[4]s/director.toml
  and its end          %[3]s active -c %[4]s/director.toml
  a kill               kill -9 $(ip netns pids %[1]s-director)
  the rest             %[4]s has configurations, logs and control sockets
`

// pairTOML is the part of a director's configuration that makes it one of a pair; "" without a pair.
func (s *show) pairTOML(priority int) string {
	if !s.ha {
		return ""
	}
	return fmt.Sprintf("\n[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nrouter_id = 51\ninterval = \"100ms\"\n"+
		"priority = %d\naddresses = [%q]\n\n[sync]\npeers = [%q, %q]\nkey = %q\n",
		priority, s.vip(), s.addr(s.lab.Director), s.addr(s.lab.Backup), keyPath())
}

// keyPath returns the path of the file with the key of [sync].
func keyPath() string { return dir + "/sync.key" }
