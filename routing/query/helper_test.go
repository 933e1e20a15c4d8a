package query

import "vstun/routing/kernel/kerneltest"

// The helpers of kerneltest by short names: a test's host is drawn at NewHost.
var (
	newHost      = kerneltest.NewHost
	enterNewHost = kerneltest.EnterNewHost
	must         = kerneltest.Must
	named        = kerneltest.Named
	cidr         = kerneltest.CIDR
	linkOf       = kerneltest.LinkOf
	linkUp       = kerneltest.LinkUp
	addAddr      = kerneltest.AddAddr
	setSysctl    = kerneltest.SetSysctl
	quickest     = kerneltest.Quickest
)
