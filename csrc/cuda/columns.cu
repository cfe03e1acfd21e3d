// Column sums of clamped probabilities, and the gradient of a function of them.
#include "seats.h"

namespace anl::cuda {
namespace {

template <class A> struct RowTeamParam {
  ColumnGradArgs args; // the parts of the lse are written with those of ColumnArgs alone
  int lanes;           // of a row; 0: the block
};

template <class A> ANL_DEVICE A* lse_parts_of(const ColumnArgs& args, int64_t n) {
  return static_cast<A*>(args.lse_parts) + n * num_lse_parts;
}
ANL_DEVICE bool counts(const ColumnArgs& args, int64_t n) {
  return !args.counted || args.counted[n];
}
// Compared so that a NaN stays one.
template <class A> ANL_DEVICE A clamped(A p, A low, A high) {
  return p < low ? low : p > high ? high : p;
}

template <class A> ANL_DEVICE void take_in(Partials<A>& s, A z) {
  if (z > s.m) {
    s.mass = s.mass * exp_below(s.m - z) + 1;
    s.m = z;
  } else { // a NaN too
    s.mass += exp_below(z - s.m);
  }
}

template <class T>
ANL_KERNEL(row_threads, 4)
lse_parts_kernel(ANL_PARAM RowTeamParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const Seat seat(p.lanes);
  const bool exists = seat.n < p.args.shape.B * p.args.shape.M;
  const bool counted = exists && counts(p.args, seat.n);
  const int K = int(p.args.shape.K);
  Partials<A> s = Partials<A>::nothing();
  if (counted) {
    const StridedRow<T> z(p.args.logits, p.args.shape, seat.n);
    const int whole = z.in_vectors() ? K / width<T> * width<T> : 0;
    for (int k = seat.rank * width<T>; k < whole; k += seat.size * width<T>) {
      A z_k[width<T>];
      z.load(k, z_k);
#pragma unroll
      for (int i = 0; i < width<T>; ++i)
        take_in(s, z_k[i]);
    }
    for (int k = whole + seat.rank; k < K; k += seat.size)
      take_in(s, z[k]);
  }
  s = seat.reduce(s);
  if (exists && seat.rank == 0) {
    A* const to = lse_parts_of<A>(p.args, seat.n);
    to[0] = counted ? s.m : A(0);
    to[1] = counted ? Math<A>::log(s.mass) : A(0);
  }
}

// What a class adds to a row's gradient.
template <class A> class ColumnSlopes {
public:
  ANL_DEVICE ColumnSlopes(const ColumnGradArgs& args, int64_t n)
      : m_(lse_parts_of<A>(args, n)[0]), log_s_(lse_parts_of<A>(args, n)[1]), low_(A(args.low)),
        high_(A(args.high)), slopes_(static_cast<const A*>(args.slopes)) {}

  ANL_DEVICE A p(A z) const { return exp_below((z - m_) - log_s_); }
  // The slope that reaches p, through the clamp.
  ANL_DEVICE A at(A p, A slope) const { return p < low_ || p > high_ ? A(0) : slope; }
  ANL_DEVICE A operator[](int k) const { return slopes_[k]; }
  ANL_DEVICE bool in_vectors() const { return misaligned(slopes_) == 0; }
  template <int count> ANL_DEVICE void load(int k, A (&values)[count]) const {
#pragma unroll
    for (int i = 0; i < count; i += width<A>) {
      A some[width<A>];
      unpack<A>(load16(slopes_ + k + i), some);
#pragma unroll
      for (int j = 0; j < width<A>; ++j)
        values[i + j] = some[j];
    }
  }

private:
  A m_, log_s_, low_, high_;
  const A* slopes_;
};

template <class T> class GradientOfRow {
public:
  using A = Accumulator<T>;
  ANL_DEVICE GradientOfRow(const ColumnGradArgs& args, const Seat& seat)
      : z_(args.logits, args.shape, seat.n), out_(args.grad, args.shape, seat.n),
        slopes_(args, seat.n), seat_(seat), K_(int(args.shape.K)), adds_(args.accumulate),
        whole_(z_.in_vectors() && out_.in_vectors() && slopes_.in_vectors()
                   ? K_ / width<T> * width<T>
                   : 0) {}

  ANL_DEVICE A dot() const {
    A sum = 0;
    for (int k = seat_.rank * width<T>; k < whole_; k += seat_.size * width<T>) {
      A z[width<T>], slope[width<T>];
      z_.load(k, z);
      slopes_.load(k, slope);
#pragma unroll
      for (int i = 0; i < width<T>; ++i) {
        const A p = slopes_.p(z[i]);
        sum += p * slopes_.at(p, slope[i]);
      }
    }
    for (int k = whole_ + seat_.rank; k < K_; k += seat_.size) {
      const A p = slopes_.p(z_[k]);
      sum += p * slopes_.at(p, slopes_[k]);
    }
    return sum;
  }

  // scale p (u - dot), or what is there plus that.
  ANL_DEVICE void write(A scale, A dot) const {
    for (int k = seat_.rank * width<T>; k < whole_; k += seat_.size * width<T>) {
      A z[width<T>], slope[width<T>], before[width<T>] = {};
      z_.load(k, z);
      slopes_.load(k, slope);
      if (adds_)
        out_.load(k, before);
#pragma unroll
      for (int i = 0; i < width<T>; ++i) {
        const A p = slopes_.p(z[i]);
        z[i] = before[i] + scale * p * (slopes_.at(p, slope[i]) - dot);
      }
      out_.store(k, z);
    }
    for (int k = whole_ + seat_.rank; k < K_; k += seat_.size) {
      const A p = slopes_.p(z_[k]);
      out_.put(k, (adds_ ? out_[k] : A(0)) + scale * p * (slopes_.at(p, slopes_[k]) - dot));
    }
  }

  ANL_DEVICE void clear() const {
    for (int k = seat_.rank; !adds_ && k < K_; k += seat_.size)
      out_.put(k, 0);
  }

private:
  const StridedRow<T> z_, out_;
  const ColumnSlopes<A> slopes_;
  const Seat seat_;
  const int K_;
  const bool adds_;
  const int whole_;
};

template <class T>
ANL_KERNEL(row_threads, 3)
column_grad_kernel(ANL_PARAM RowTeamParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  Seat seat(p.lanes);
  const int64_t n = seat.n;
  const bool exists = n < p.args.shape.B * p.args.shape.M;
  seat.n = exists ? n : 0;
  const bool counted = exists && counts(p.args, n);
  const GradientOfRow<T> row(p.args, seat);
  const Sums<A> sums = seat.reduce(Sums<A>{counted ? row.dot() : A(0), 0});
  if (counted)
    row.write(*static_cast<const A*>(p.args.scale), sums.value);
  else if (exists)
    row.clear();
}

// ---- sums over rows ----------------------------------------------------------------------------

constexpr int columns_of_thread = 4;

template <class A> struct ColumnSumsParam {
  ColumnArgs args;
  A* partial; // (groups, K)
  int64_t rows_of_group;
  int lanes;  // columns side by side, a power of two; the other threads of a block have other rows
  int across; // blocks that share a group
};

template <class T>
ANL_KERNEL(row_threads, 4)
column_sums_kernel(ANL_PARAM ColumnSumsParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const int64_t group = block_x() / p.across;
  const int first = int(block_x() % p.across) * p.lanes * columns_of_thread + thread() % p.lanes;
  const int K = int(p.args.shape.K), step = threads() / p.lanes, place = thread() / p.lanes;
  const A low = A(p.args.low), high = A(p.args.high);
  const int64_t rows = p.args.shape.B * p.args.shape.M, last = (group + 1) * p.rows_of_group;
  A sums[columns_of_thread] = {};
  for (int64_t n = group * p.rows_of_group + place; n < last && n < rows; n += step) {
    if (!counts(p.args, n))
      continue;
    const StridedRow<T> z(p.args.logits, p.args.shape, n);
    const A m = lse_parts_of<A>(p.args, n)[0], log_s = lse_parts_of<A>(p.args, n)[1];
#pragma unroll
    for (int c = 0; c < columns_of_thread; ++c) {
      const int k = first + c * p.lanes;
      if (k < K)
        sums[c] += clamped(exp_below((z[k] - m) - log_s), low, high);
    }
  }
  // Over the threads of a column, in an order that depends on nothing.
  A* const slots = reinterpret_cast<A*>(shared_memory());
#pragma unroll
  for (int c = 0; c < columns_of_thread; ++c)
    shared_store(slots + c * threads() + thread(), sums[c]);
  for (int half = step / 2; half > 0; half /= 2) {
    block_barrier();
    if (place < half)
#pragma unroll
      for (int c = 0; c < columns_of_thread; ++c) {
        A* const slot = slots + c * threads() + thread();
        shared_store(slot, shared_load(slot) + shared_load(slot + half * p.lanes));
      }
  }
  if (place == 0)
#pragma unroll
    for (int c = 0; c < columns_of_thread; ++c) {
      const int k = first + c * p.lanes;
      if (k < K)
        p.partial[group * K + k] = shared_load(slots + c * threads() + thread());
    }
}

// ---- launches ----------------------------------------------------------------------------------

// Each thread meets this many rows at least, so that partial sums are small against the logits.
constexpr int rows_of_thread = 8;
constexpr int blocks_of_processor = 8;

struct ColumnPlan {
  int lanes, across;
  int64_t rows_of_group, groups;
};

bool rows_are_neighbours(const ColumnArgs& args) {
  return args.shape.M > 1 && std::abs(args.logits.pos) < std::abs(args.logits.cls);
}

ColumnPlan plan_columns(ColumnArgs args, const Place& place) {
  canonical(args.shape, args.logits);
  ColumnPlan plan = {1, 1, 0, 0};
  while (!rows_are_neighbours(args) && plan.lanes < row_threads &&
         plan.lanes * columns_of_thread < args.shape.K)
    plan.lanes *= 2;
  plan.across = int(ceil_div(args.shape.K, plan.lanes * columns_of_thread));
  const int64_t rows = args.shape.rows(), least = row_threads / plan.lanes * rows_of_thread;
  const int64_t wanted = int64_t(blocks_of_processor) * describe_device(place.device).processors;
  const int64_t each = ceil_div(rows, std::max<int64_t>(1, wanted / plan.across));
  plan.rows_of_group = std::max(least, each);
  plan.groups = ceil_div(rows, plan.rows_of_group);
  return plan;
}

Seats seats_for(const ColumnArgs& args, int element_size) {
  return {args.shape, args.logits, rows_are_neighbours(args), element_size};
}

} // namespace

int64_t column_groups(const ColumnArgs& args, const Place& place) {
  check_shape(args.shape);
  return plan_columns(args, place).groups;
}

void column_sums(const ColumnSumsArgs& given, const Place& place) {
  ColumnGradArgs args = {};
  static_cast<ColumnArgs&>(args) = given;
  const ColumnPlan plan = plan_columns(args, place);
  canonical(args.shape, args.logits);
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    const Seats seats = seats_for(args, sizeof(T));
    launch(lse_parts_kernel<T>, "lse_parts", seats.grid, place.stream,
           RowTeamParam<A>{args, seats.lanes});
    const Grid grid = {plan.groups * plan.across, 1, row_threads,
                       int64_t(row_threads * columns_of_thread * sizeof(A))};
    launch(column_sums_kernel<T>, "column_sums", grid, place.stream,
           ColumnSumsParam<A>{args, static_cast<A*>(given.sums), plan.rows_of_group, plan.lanes,
                              plan.across});
  });
}

void column_grad(const ColumnGradArgs& given, const Place& place) {
  ColumnGradArgs args = given;
  check_shape(args.shape);
  canonical(args.shape, args.logits, args.grad);
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const Seats seats = seats_for(args, sizeof(T));
    launch(column_grad_kernel<T>, "column_grad", seats.grid, place.stream,
           RowTeamParam<Accumulator<T>>{args, seats.lanes});
  });
}

} // namespace anl::cuda
