package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mapMemory returns the bytes that the BPF maps of a process use. Linux says since 6.4 what is used, before that what
// could be.
func mapMemory(pid int) (bytes float64, err error) {
	maps, err := descriptors(pid, "map_type:", "memlock:")
	for _, n := range maps {
		bytes += n
	}
	return bytes, err
}

// descriptors returns, for all of a process's descriptors of one kind, the number behind a name in /proc/PID/fdinfo.
// kind is a name that only this kind has.
func descriptors(pid int, kind, name string) (all []float64, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), kind) { // or the descriptor has just been closed
			continue
		}
		n, err := field(text, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// privateMemory returns the bytes of a process's memory that belong to no file.
func privateMemory(pid int) (bytes float64, err error) {
	file := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	kilo, err := field(text, "RssAnon:")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return kilo * 1024, nil
}

// field returns the number behind a name, of a file in /proc.
func field(text []byte, name string) (float64, error) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == name {
			return strconv.ParseFloat(words[1], 64)
		}
	}
	return 0, fmt.Errorf("no line %s", name)
}
