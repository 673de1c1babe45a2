#include "scratch.hpp"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace openwork {
namespace {

struct Block {
    char* data;
    size_t bytes;
};

struct Pool {
    std::mutex mutex;
    std::vector<Block> idle;
    size_t bytes = 0;
    bool poison = false;
};

Pool& pool() {
    static Pool* one = new Pool;  // never destroyed: calls may still run while the process exits
    return *one;
}

// The idle block used last that is large enough, so that calls and layers which follow each other work in the same, cached, memory.
// Where all are too small the one used last is exchanged for a larger one: it is `surplus`, for the caller to free.
Block take(size_t bytes, char*& surplus) {
    Pool& p = pool();
    std::lock_guard<std::mutex> guard(p.mutex);
    size_t i = p.idle.size();
    while (i > 0 && p.idle[i - 1].bytes < bytes) --i;
    const bool found = i > 0;
    if (p.idle.empty()) return {nullptr, 0};
    const Block block = p.idle[found ? i - 1 : p.idle.size() - 1];
    p.idle.erase(p.idle.begin() + static_cast<std::ptrdiff_t>(found ? i - 1 : p.idle.size() - 1));
    p.bytes -= block.bytes;
    if (found) return block;
    surplus = block.data;
    return {nullptr, 0};
}

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_(0) {
    const size_t rounded = (bytes + 65535) / 65536 * 65536 + 65536;
    char* surplus = nullptr;
    Block block = take(rounded, surplus);
    std::free(surplus);
    if (block.data == nullptr) block = {static_cast<char*>(std::aligned_alloc(4096, rounded)), rounded};
    data_ = block.data;
    bytes_ = block.bytes;
    if (data_ != nullptr && pool().poison) std::memset(data_, 0xff, bytes_);  // all bits set is a NaN
}

Scratch::~Scratch() {
    if (data_ == nullptr) return;
    std::vector<char*> surplus;
    {
        Pool& p = pool();
        std::lock_guard<std::mutex> guard(p.mutex);
        p.idle.push_back({data_, bytes_});
        p.bytes += bytes_;
        // The oldest blocks are the least likely to be wanted again.
        while (p.bytes > kScratchLimit) {
            surplus.push_back(p.idle.front().data);
            p.bytes -= p.idle.front().bytes;
            p.idle.erase(p.idle.begin());
        }
    }
    for (char* data : surplus) std::free(data);
}

size_t scratch_bytes() {
    std::lock_guard<std::mutex> guard(pool().mutex);
    return pool().bytes;
}

void release_scratch() {
    std::vector<Block> freed;
    {
        Pool& p = pool();
        std::lock_guard<std::mutex> guard(p.mutex);
        freed.swap(p.idle);
        p.bytes = 0;
    }
    for (const Block& block : freed) std::free(block.data);
}

void poison_scratch(bool on) {
    std::lock_guard<std::mutex> guard(pool().mutex);
    pool().poison = on;
}

}  // namespace openwork
