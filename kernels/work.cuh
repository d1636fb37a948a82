// What the planner hands to the attention kernels, and how they walk it.
#pragma once
#include "format.cuh"
#include "window.cuh"

namespace hw {

constexpr u32 NO_PARTIAL = 0xffffffffu;

// A range of the pages of one (sequence, KV head), for the query group that reads it.
struct __align__(8) WorkItem {
    u32 query;    // first of GROUP rows in queries, outputs and log-sum-exps
    u32 pages;    // index in the page ids of the first page of the range
    u32 slots;    // slots in use in the range, from slot 0 of its first page; may be 0
    u32 partial;  // which partial result to write; NO_PARTIAL writes the output itself
    u32 logits;   // index in the logits of the range's first slot (kernels built with logits)
    u32 reserved;
};

// The tiles of `slots` slots, page after page: a page's last tile may be a short one.
__device__ __forceinline__ u32 tiles_of(u32 slots) {
    return slots / PAGE_SLOTS * PAGE_TILES + ceil_div(slots % PAGE_SLOTS, TILE);
}

struct TileAt {
    u32 page;   // which page of the range
    u32 first;  // its first slot in that page
    u32 valid;  // slots in use
    __device__ __forceinline__ TileAt(u32 tile, u32 slots)
        : page(tile / PAGE_TILES), first(tile % PAGE_TILES * TILE) {
        valid = min(min(TILE, PAGE_SLOTS - first), slots - page * PAGE_SLOTS - first);
    }
    // Counted from the first slot of the range.
    __device__ __forceinline__ u32 slot() const { return page * PAGE_SLOTS + first; }
};

// Where a work item lies in its table (kernels built with windows): the window is at the table's end,
// which grows in the item that holds it.
struct __align__(8) ItemPlace {
    u32 first;  // slots of the table before the item
    u32 last;   // the item that holds the table's end
};

// The tiles of a range that have anything to see: all but those between `kept` and `kept + left_out`.
struct Tiles {
    u32 count, kept, left_out;

    __device__ __forceinline__ Tiles(u32 slots, Hidden hidden)
        : count(tiles_of(slots)), kept(count), left_out(0) {
        if (!hidden.some_of(0, slots)) return;
        const u32 to = min(hidden.to, slots);
        const u32 next = to == slots ? count : to / PAGE_SLOTS * PAGE_TILES + to % PAGE_SLOTS / TILE;
        kept = tiles_of(hidden.from);
        left_out = next > kept ? next - kept : 0;
        count -= left_out;
    }

    // The `i`th of those that are left.
    __device__ __forceinline__ u32 at(u32 i) const { return i < kept ? i : i + left_out; }
};

}  // namespace hw
