package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine describes the machine of a run.
type Machine struct {
	Kernel       string `json:"kernel"`
	Processor    string `json:"processor"`
	CPUs         int    `json:"cpus"`          // number of CPUs that this process may use
	GeneratorCPU int    `json:"generator_cpu"` // as the kernel numbers them
	DirectorCPU  int    `json:"director_cpu"`
	// runnable threads of other programs before the start, a minute's average (proc_loadavg(5))
	Load float64 `json:"load"`
}

// thisMachine examines the machine, which must have this number of CPUs. It chooses a CPU for the generator and one for
// the director, on another core if there is one.
func thisMachine(least int) (m Machine, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return m, fmt.Errorf("CPUs of this process: %w", err)
	}
	var all []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	if len(all) < least {
		return m, errors.New("one CPU is not enough: generator and director need one each. Use --kernel to measure " +
			"only what the kernel forwards")
	}
	m.CPUs, m.GeneratorCPU, m.DirectorCPU = len(all), all[0], all[min(1, len(all)-1)]
	for _, cpu := range all[1:] {
		if coreOf(cpu) != coreOf(all[0]) {
			m.DirectorCPU = cpu
			break
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("kernel: %w", err)
	}
	m.Kernel = string(uts.Release[:max(0, bytes.IndexByte(uts.Release[:], 0))])
	m.Processor = "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.Processor = strings.TrimSpace(value)
			break
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(load), &m.Load)
	}
	if err != nil {
		return m, fmt.Errorf("load of this machine: %w", err)
	}
	return m, nil
}

// coreOf returns a name of a CPU's core: its hardware threads, or the CPU itself if the kernel does not report them.
func coreOf(cpu int) string {
	text, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu))
	if err != nil {
		return fmt.Sprint(cpu)
	}
	return string(text)
}

// cpuTime returns the CPU time of all threads of a process, ended ones included (clock_getcpuclockid(3)). On a kernel
// without CONFIG_IRQ_TIME_ACCOUNTING it includes interrupts during those threads, such as the work of a send beyond a
// veth link.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED, linux/posix-timers.h: in nanoseconds
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// pin binds the calling thread, which its goroutine must have locked, to one CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind to CPU %d: %w", cpu, err)
	}
	return nil
}
