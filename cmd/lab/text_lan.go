package main

// lanDrawing takes the VIP and the addresses of client, director, web1, web2 and insider.
const lanDrawing = `vstun demo: the virtual address (VIP) in the subnet of its director and web servers, by VS/DR.

                          client  %[2]s
                             |        ^
       1  request to the VIP |        | 3  reply from the VIP
%26[1]s   v        |
       +-----------------------------------------------------------+
       |                          router                           |
       +-----------------------------------------------------------+
                             |        ^
                           1 v        | 3
       ====================== one subnet: a switch ==================
          |     ^           |    ^           |    ^          |   ^
        1 v     | 2       2 v    | 3       2 v    | 3      1 |   | 3
       director          web1             web2             insider
       %-15[3]s   %-15[4]s  %-15[5]s  %[6]s
       answers ARP and   own the VIP, answer no ARP        one more
       ND for the VIP    for it, and answer clients        client
                         directly

       2  the request unchanged, in a frame to the MAC address of the server that was picked

`

// lanStayText takes the prefix, the VIP, the director's program and configuration, the directory and the URL.
const lanStayText = `
Everything runs until Ctrl-C. Look around, as root, in another terminal:

  a request            ip netns exec %[1]s-insider curl '%[6]s'
  who has the VIP      ip netns exec %[1]s-insider ip neigh show %[2]s
  in and out, by MAC   ip netns exec %[1]s-director tcpdump -eni eth0 dst %[2]s
  replies of web1      ip netns exec %[1]s-web1 tcpdump -ni eth0 src %[2]s
  director's status    %[3]s status -c %[4]s
  the rest             %[5]s has configurations, logs and control sockets
`
