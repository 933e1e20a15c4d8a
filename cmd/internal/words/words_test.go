package words

import "testing"

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		Count(0, "VIP"): "0 VIPs", Count(1, "VIP"): "1 VIP", Count(uint64(2), "packet"): "2 packets",
		OneOf(nil): "", OneOf([]string{"a"}): "a", OneOf([]string{"a", "b"}): "a or b",
		OneOf([]string{"a", "b", "c"}):                                   "a, b or c",
		Instead("statuss", []string{"run", "status"}):                    "did you mean status?",
		Instead("ESTABLISHT", []string{"TIME_WAIT", "ESTABLISHED"}):      "did you mean ESTABLISHED?",
		Instead("198.51.100.81", []string{"192.0.2.1", "198.51.100.80"}): "did you mean 198.51.100.80?",
		Instead("established", []string{"ESTABLISHED", "UDP"}):           "did you mean ESTABLISHED?",
		Instead("colour", []string{"run", "status"}):                     "want run or status",
		Instead("chekc", []string{"run", "check"}):                       "did you mean check?",
		Instead("wbe", []string{"dns", "web"}):                           "did you mean web?",
		Instead("", []string{"a", "abc"}):                                "want a or abc",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
