// Says whether a history of appends to lists, and reads of whole lists, is linearizable. Each list is judged by itself.
//
// On standard input: one operation a line, as JSON. The times are in nanoseconds; a null return time is an append of
// unknown outcome, which may have happened at any time after its call, or never.
//
//	{"call": 1000, "return": 2000, "op": "append", "key": 0, "value": 12}
//	{"call": 1500, "return": 2500, "op": "read", "key": 0, "result": [11, 12]}
//
// Ends with 0 if all lists are linearizable, with 1 and the keys of those that are not, with 2 if it cannot tell.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

const patience = 2 * time.Minute // for each list

type operation struct {
	Call   int64    `json:"call"`
	Return *int64   `json:"return"`
	Op     string   `json:"op"`
	Key    int      `json:"key"`
	Value  uint64   `json:"value"`
	Result []uint64 `json:"result"`
}

// A list, as its length and a hash of its numbers in their order: lists are long, and compared at each step.
type list struct {
	length int
	hash   uint64
}

func (l list) with(number uint64) list {
	h := (l.hash ^ number) * 0x9e3779b97f4a7c15
	return list{l.length + 1, h ^ h>>32}
}

type input struct {
	isRead bool
	number uint64
}

// longest is the longest list that was read. What is shorter must be its beginning, because a list only grows: no
// append that the longest list has elsewhere can come next. This excludes nothing that could be right, and without it
// the search would try all orders of appends that no read tells apart.
func model(longest []uint64) porcupine.Model {
	return porcupine.Model{
		Init: func() interface{} { return list{} },
		Step: func(state, in, out interface{}) (bool, interface{}) {
			now, what := state.(list), in.(input)
			if what.isRead {
				return out.(list) == now, now
			}
			if now.length < len(longest) && longest[now.length] != what.number {
				return false, now
			}
			return true, now.with(what.number)
		},
		Hash: func(state interface{}) uint64 { return state.(list).hash },
	}
}

func read(from io.Reader) (map[int][]porcupine.Operation, map[int][]uint64, error) {
	histories, longest := map[int][]porcupine.Operation{}, map[int][]uint64{}
	lines := bufio.NewReader(from)
	for number := 1; ; number++ {
		line, end := lines.ReadBytes('\n')
		if end != nil && end != io.EOF {
			return nil, nil, end
		}
		if len(line) == 0 {
			return histories, longest, nil
		}
		var one operation
		if err := json.Unmarshal(line, &one); err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", number, err)
		}
		made := porcupine.Operation{Call: one.Call, Return: math.MaxInt64}
		if one.Return != nil {
			made.Return = *one.Return
		}
		switch {
		case made.Return < made.Call:
			return nil, nil, fmt.Errorf("line %d: it returned before it was called", number)
		case one.Op == "append":
			made.Input = input{number: one.Value}
		case one.Op == "read" && one.Return != nil:
			shown := list{}
			for _, number := range one.Result {
				shown = shown.with(number)
			}
			made.Input, made.Output = input{isRead: true}, shown
			if len(one.Result) > len(longest[one.Key]) {
				longest[one.Key] = one.Result
			}
		default:
			return nil, nil, fmt.Errorf("line %d: neither an append nor a read that returned", number)
		}
		histories[one.Key] = append(histories[one.Key], made)
	}
}

// known leaves out the appends of unknown outcome that no list shows: that they never happened is always possible.
func known(history []porcupine.Operation, longest []uint64) []porcupine.Operation {
	shown := map[uint64]bool{}
	for _, number := range longest {
		shown[number] = true
	}
	var kept []porcupine.Operation
	for _, one := range history {
		if one.Return != math.MaxInt64 || shown[one.Input.(input).number] {
			kept = append(kept, one)
		}
	}
	return kept
}

func main() {
	histories, longest, err := read(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	keys := make([]int, 0, len(histories))
	for key := range histories {
		keys = append(keys, key)
	}
	sort.Ints(keys)
	code := 0
	for _, key := range keys {
		history := known(histories[key], longest[key])
		switch porcupine.CheckOperationsTimeout(model(longest[key]), history, patience) {
		case porcupine.Illegal:
			fmt.Printf("list %d is not linearizable\n", key)
			if code == 0 {
				code = 1
			}
		case porcupine.Unknown:
			fmt.Printf("list %d was not decided within %s\n", key, patience)
			code = 2
		}
	}
	os.Exit(code)
}
