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

// The smallest idle block that is large enough but not wastefully so.
Block take(size_t bytes) {
    Pool& p = pool();
    std::lock_guard<std::mutex> guard(p.mutex);
    size_t best = p.idle.size();
    for (size_t i = 0; i < p.idle.size(); ++i) {
        if (p.idle[i].bytes >= bytes && (best == p.idle.size() || p.idle[i].bytes < p.idle[best].bytes)) best = i;
    }
    if (best == p.idle.size()) return {nullptr, 0};
    Block block = p.idle[best];
    p.idle.erase(p.idle.begin() + static_cast<std::ptrdiff_t>(best));
    p.bytes -= block.bytes;
    return block;
}

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_(0) {
    const size_t rounded = (bytes + 65535) / 65536 * 65536 + 65536;
    Block block = take(rounded);
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
