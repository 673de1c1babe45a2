// Scratch memory that outlives a call.  Freshly mapped pages cost more than the arithmetic of a sparse product, so blocks are kept
// in a pool, up to kScratchLimit bytes of idle ones; concurrent calls get blocks of their own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace openwork {

constexpr size_t kScratchLimit = size_t{256} << 20;

// A 64-byte aligned block, given back to the pool at the end of the scope.  `data` is null if there was no memory.
class Scratch {
public:
    explicit Scratch(size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    char* data() const { return data_; }

private:
    char* data_;
    size_t bytes_;
};

size_t scratch_bytes();             // idle bytes in the pool
void release_scratch();             // frees the idle blocks
void poison_scratch(bool on);       // for tests: every block starts as NaN

}  // namespace openwork
