#include "sortings.hpp"

#include <list>
#include <mutex>
#include <vector>

namespace openwork {
namespace {

constexpr size_t kMostOrders = 4;  // a layer needs two, one more for batches of another kind

struct Entry {
    SortingKey key;
    std::vector<int32_t> starts, order;
};

bool same(const SortingKey& a, const SortingKey& b) {
    return a.groups == b.groups && a.stored == b.stored && a.taps == b.taps && a.taps_in_line == b.taps_in_line && a.windows == b.windows &&
           a.by == b.by;
}

}  // namespace

struct Sortings::Entries {
    mutable std::mutex mutex;
    std::list<Entry> all;

    Order find(const SortingKey& key) const {
        for (const Entry& entry : all) {
            if (same(entry.key, key)) return {entry.starts.data(), entry.order.data()};
        }
        return {nullptr, nullptr};
    }
};

Sortings::Sortings() : entries_(new Entries) {}
Sortings::~Sortings() { delete entries_; }

Sortings::Order Sortings::find(const SortingKey& key) const {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    return entries_->find(key);
}

void Sortings::keep(const SortingKey& key, const int32_t* starts, int64_t n_starts, const int32_t* order) {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    if (entries_->all.size() >= kMostOrders || entries_->find(key).order != nullptr) return;
    entries_->all.push_back({key, {starts, starts + n_starts}, {order, order + key.stored}});
}

int64_t Sortings::bytes() const {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    size_t numbers = 0;
    for (const Entry& entry : entries_->all) numbers += entry.starts.size() + entry.order.size();
    return static_cast<int64_t>(numbers * sizeof(int32_t));
}

}  // namespace openwork
