package main

// tunnelDrawing takes the addresses of the director's host and of web1.
const tunnelDrawing = `vstun demo: two sites over three networks, by point-to-point tunnels. No kernel module is needed.

       site a                                            site b
       director ========== site0: TUN, gre ============= web1
                ========== lan0:  TAP, gue =============
       %-15[1]v          router: 10.0.1.0/24        %[2]v

`

// tunnelStayText takes the prefix and the directory.
const tunnelStayText = `
Everything runs until Ctrl-C. Look around, as root, in another terminal:

  ping                 ip netns exec %[1]s-director ping 10.8.0.2
  devices              ip netns exec %[1]s-director ip -d address
  the rest             %[2]s has configurations, logs and control sockets
`
