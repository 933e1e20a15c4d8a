package api

import "fmt"

// Checks is the descriptors that health checks have and need.
type Checks struct {
	Limit   int `json:"descriptor_limit"`   // of the program
	Room    int `json:"descriptors"`        // left for checks in flight
	Needed  int `json:"descriptors_needed"` // for all checks in flight at once
	Waiting int `json:"waiting"`            // checks that are due and wait for descriptors
}

// Short reports whether checks may have to wait for descriptors.
func (c Checks) Short() bool { return c.Needed > c.Room }

// Shortage returns a message about the lack of descriptors, with both numbers.
func (c Checks) Shortage() string {
	return fmt.Sprintf("all at once need %d descriptors, and the limit of %d leaves %d: the others wait, "+
		"and a realserver that dies is out later", c.Needed, c.Limit, c.Room)
}

// Fix returns the instruction to raise the limit.
func (c Checks) Fix() string {
	return fmt.Sprintf("set LimitNOFILE=%d or more in the unit, or ulimit -n, and restart the director",
		c.Needed+c.Limit-c.Room)
}
