// Column sums of clamped probabilities, and the gradient of a function of them.
//
// Threads have groups of rows, and a partial sum for each: results depend on the number of threads,
// on nothing else. Sums over many rows are double, so that roundings do not pile up.
#pragma once

#include "long_row.h"
#include "tiles.h"

namespace anl::cpu {

// ---- both forms --------------------------------------------------------------------------------

// A NaN stays one.
template <class A> ANL_INLINE V<A> clamped(V<A> p, A low, A high) {
  return min<A>(fill(high), max<A>(fill(low), p));
}

// The slope that reaches p, through the clamp.
template <class A> ANL_INLINE V<A> slope_at(V<A> p, V<A> slope, A low, A high) {
  const I<A> outside = (p < low) | (p > high);
  return outside ? fill(A(0)) : slope;
}

inline bool counts(const ColumnArgs& args, int64_t n) { return !args.counted || args.counted[n]; }

// Rows to a group at least: fewer would make partial sums of the size of the logits.
constexpr int64_t rows_of_group = 8;

// Units of work, in groups of neighbours, each with its sums of K columns; then their sum.
class ColumnGroups {
public:
  ColumnGroups(int64_t rows, int64_t units, int64_t K, int threads)
      : units_(units), K_(K), count_(smaller(threads, smaller(units, rows / rows_of_group))) {
    count_ = count_ < 1 ? 1 : count_;
    sums_.reset(new double[count_ * K]());
  }
  int64_t count() const { return count_; }
  int64_t first(int64_t group) const { return group * units_ / count_; }
  int64_t most_units() const { return (units_ - 1) / count_ + 1; }
  double* sums(int64_t group) const { return sums_.get() + group * K_; }
  template <class A> void add_up(int64_t begin, int64_t end, A* to) const {
    for (int64_t k = begin; k < end; ++k) {
      double sum = 0;
      for (int64_t group = 0; group < count_; ++group)
        sum += sums(group)[k];
      to[k] = A(sum);
    }
  }

private:
  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  int64_t units_, K_, count_;
  std::unique_ptr<double[]> sums_;
};

// Two phases: groups, then columns.
template <class T> class ColumnSums : public Job {
public:
  using A = Accumulator<T>;
  ColumnSums(const ColumnSumsArgs& args, int64_t units, int64_t elements_of_unit, int threads)
      : args_(args), groups_(args.shape.rows(), units, args.shape.K, threads),
        elements_(elements_of_unit) {}

  int phases() const override { return 2; }
  int64_t units(int phase) const override { return phase ? args_.shape.K : groups_.count(); }
  int64_t elements_of_unit(int phase) const override {
    return phase ? groups_.count() : groups_.most_units() * elements_;
  }
  void run(int phase, int64_t begin, int64_t end) override {
    if (phase)
      return groups_.add_up(begin, end, static_cast<A*>(args_.sums));
    for (int64_t group = begin; group < end; ++group)
      add_units(groups_.first(group), groups_.first(group + 1), groups_.sums(group));
  }

protected:
  virtual void add_units(int64_t begin, int64_t end, double* sums) const = 0;

  A* lse_parts(int64_t n) const { return static_cast<A*>(args_.lse_parts) + n * num_lse_parts; }

  const ColumnSumsArgs args_;
  const ColumnGroups groups_;

private:
  const int64_t elements_;
};

// ---- long rows ---------------------------------------------------------------------------------

// sums += the clamped p, p = e * to_p, in whole vectors.
template <class A> void add_probabilities(const A* e, A to_p, A low, A high, int n, A* sums) {
  for (int k = 0; k < n; k += lanes<A>)
    store(sums + k, load(sums + k) + clamped<A>(load(e + k) * to_p, low, high));
}

template <class T> class ColumnSumsRows : public ColumnSums<T> {
  using Base = ColumnSums<T>;
  using Base::args_;

public:
  using typename Base::A;
  ColumnSumsRows(const ColumnSumsArgs& args, int threads)
      : Base(args, args.shape.rows(), args.shape.K, threads), pieces_(args.shape) {}

private:
  // Rows that are added up in their own type first: double sums for each would cost twice the time.
  static constexpr int rows_of_run = 32;

  void add_units(int64_t begin, int64_t end, double* sums) const override {
    const int64_t K = args_.shape.K;
    Workspace& space = Workspace::of_thread();
    Buffers<T> buffers(space);
    A *const kept_e = pieces_.take_e(space), *const run = space.take<A>(K + lanes<A>);
    Partials<A>* const found = space.take<Partials<A>>(pieces_.count);
    for (int64_t n = begin; n < end;) {
      memset(run, 0, K * sizeof(A));
      for (int i = 0; i < rows_of_run && n < end; ++i, ++n)
        add_row(n, buffers, kept_e, found, run);
      for (int64_t k = 0; k < K; ++k)
        sums[k] += run[k];
    }
  }

  void add_row(int64_t n, Buffers<T>& buffers, A* kept_e, Partials<A>* found, A* sums) const {
    A* const lse_parts = this->lse_parts(n);
    lse_parts[0] = lse_parts[1] = 0;
    if (!counts(args_, n))
      return;
    auto e = [&](int64_t piece) { return pieces_.e_of(kept_e, buffers.e, piece); };
    for (int64_t c = 0; c < pieces_.count; ++c)
      found[c] = pieces_.measure(args_.logits, n, c, -1, buffers.z, e(c), nullptr);
    const Merged<A> all = merged(found, pieces_.count);
    lse_parts[0] = all.max;
    lse_parts[1] = Math<V<A>>::log(fill(all.mass))[0];
    for (int64_t c = 0; c < pieces_.count; ++c) {
      if (!kept_e)
        pieces_.measure_again(args_.logits, n, c, -1, buffers.z, e(c), found[c]);
      add_probabilities<A>(e(c), exp_of(found[c].max - all.max) / all.mass, A(args_.low),
                           A(args_.high), pieces_.size(c), sums + pieces_.start(c));
    }
  }

  const Pieces<T> pieces_;
};

// The sum of p u. While it computes, it fetches the memory at `next`, which is null or read after
// this piece.
template <class T, class A = Accumulator<T>>
A dot_of_slopes(const A* p, const A* slopes, A low, A high, int n, const T* next) {
  V<A> sum[unroll] = {};
  int k = 0;
  for (; k + block<A> <= n; k += block<A>) {
    if (next)
#pragma GCC unroll 8
      for (int i = 0; i < block<A>; i += 64 / sizeof(T))
        __builtin_prefetch(next + k + i, 1);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> p_u = load(p + k + u * lanes<A>);
      sum[u] += p_u * slope_at<A>(p_u, load(slopes + k + u * lanes<A>), low, high);
    }
  }
  A total = sum_across<A>(add_up<A>(sum));
  for (; k < n; ++k)
    total += p[k] * slope_at<A>(fill(p[k]), fill(slopes[k]), low, high)[0];
  return total;
}

// out = scale p (u - dot), plus what is in `before`, which may be null.
template <class T, class A = Accumulator<T>>
void column_gradient(const A* p, const A* slopes, const ColumnGradArgs& args, A scale, A dot, int n,
                     const T* before, const Outlet<T>& out) {
  const A low = A(args.low), high = A(args.high);
  int k = 0;
  for (; k + lanes<A> <= n; k += lanes<A>) {
    const V<A> p_k = load(p + k), u = slope_at<A>(p_k, load(slopes + k), low, high);
    V<A> grad = scale * p_k * (u - dot);
    if (before)
      grad += load_wide(before + k);
    store_narrow(out.data + k, grad, out.past_cache);
  }
  for (; k < n; ++k) {
    const A u = slope_at<A>(fill(p[k]), fill(slopes[k]), low, high)[0];
    out.data[k] = narrow<T>(scale * p[k] * (u - dot) + (before ? widen(before[k]) : A(0)));
  }
  out.close(n);
}

template <class T> class ColumnGradRows : public Job {
public:
  using A = Accumulator<T>;
  explicit ColumnGradRows(const ColumnGradArgs& args) : args_(args), pieces_(args.shape) {}

  int64_t units(int) const override { return args_.shape.rows(); }
  int64_t elements_of_unit(int) const override { return args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    Workspace& space = Workspace::of_thread();
    Buffers<T> buffers(space);
    A* const kept_p = pieces_.take_e(space);
    for (int64_t n = begin; n < end; ++n)
      if (counts(args_, n))
        write_row(n, buffers, kept_p);
      else if (!args_.accumulate)
        zero_out(row_of<T>(args_.grad, args_.shape, n), args_.grad.cls, args_.shape.K);
    finish_streaming();
  }

private:
  void write_row(int64_t n, Buffers<T>& buffers, A* kept_p) const {
    const A scale = *static_cast<const A*>(args_.scale);
    const A* const slopes = static_cast<const A*>(args_.slopes);
    const bool fetches = args_.accumulate && args_.grad.cls == 1;
    auto p = [&](int64_t piece) { return pieces_.e_of(kept_p, buffers.e, piece); };
    double dot = 0;
    for (int64_t c = 0; c < pieces_.count; ++c) {
      find_probabilities(n, c, buffers, p(c));
      dot += dot_of_slopes<T>(p(c), slopes + pieces_.start(c), A(args_.low), A(args_.high),
                              pieces_.size(c), fetches ? pieces_.at(args_.grad, n, c) : nullptr);
    }
    for (int64_t c = 0; c < pieces_.count; ++c) {
      if (!kept_p)
        find_probabilities(n, c, buffers, p(c));
      const T* before = args_.accumulate ? pieces_.in(args_.grad, n, c, buffers.z) : nullptr;
      column_gradient<T>(p(c), slopes + pieces_.start(c), args_, scale, A(dot), pieces_.size(c),
                         before, pieces_.out(args_.grad, n, c, buffers.out, args_.past_cache));
    }
  }

  void find_probabilities(int64_t n, int64_t piece, Buffers<T>& buffers, A* p) const {
    const A* s = static_cast<const A*>(args_.lse_parts) + n * num_lse_parts;
    const Piece<T> view = pieces_.view(args_.logits, n, piece, -1, s[0], s[1], buffers.z, nullptr);
    probabilities(view, p, pieces_.after(args_.logits, view.z));
  }

  const ColumnGradArgs args_;
  const Pieces<T> pieces_;
};

// ---- tiles -------------------------------------------------------------------------------------

// All bits set for the rows of a tile that count.
template <class A>
void open_counts(const ColumnArgs& args, int64_t first, int count, int P, Int<A>* counted) {
  for (int j = 0; j < P; ++j)
    counted[j] = j < count && counts(args, first + j) ? -1 : 0;
}

// p of some classes, into e.
template <class T, class A = Accumulator<T>>
void find_probabilities(const Tiles<T>& tiles, const Rows& logits, const TilePlace& place,
                        const TileRows<A>& rows, TileArrays<A>& arrays, int64_t k) {
  tiles.in(logits, place, k, arrays.spare, arrays.z);
  const int K = tiles.classes_from(k), P = tiles.tile.P;
  tile_probabilities<A>({arrays.z, nullptr, K, P, rows.m, rows.log_s, nullptr}, arrays.e);
}

template <class T> class ColumnSumsTiles : public ColumnSums<T> {
  using Base = ColumnSums<T>;
  using Base::args_;

public:
  using typename Base::A;
  ColumnSumsTiles(const ColumnSumsArgs& args, int threads)
      : ColumnSumsTiles(args, Tiles<T>(args.shape), threads) {}

private:
  ColumnSumsTiles(const ColumnSumsArgs& args, const Tiles<T>& tiles, int threads)
      : Base(args, tiles.count(), tiles.tile.P * args.shape.K, threads), tiles_(tiles) {}

  void add_units(int64_t begin, int64_t end, double* sums) const override {
    Workspace& space = Workspace::of_thread();
    TileRows<A> rows(space, tiles_.tile.P, 0);
    TileArrays<A> arrays(space, tiles_.tile);
    for (int64_t unit = begin; unit < end; ++unit)
      add_tile(tiles_.place(unit), rows, arrays, sums);
  }

  void add_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays,
                double* sums) const {
    const int P = tiles_.tile.P;
    const int64_t first = tiles_.first_row(place);
    open_counts<A>(args_, first, place.count, P, rows.counted);
    for (int j = 0; j < P; ++j) {
      rows.m[j] = lowest<A>;
      rows.mass[j] = 0;
    }
    tiles_.for_classes([&](int64_t k) {
      tiles_.in(args_.logits, place, k, arrays.spare, arrays.z);
      measure_classes(rows, arrays, tiles_.classes_from(k));
    });
    for (int j = 0; j < P; j += lanes<A>) {
      store(rows.log_s + j, Math<V<A>>::log(load(rows.mass + j)));
      store(rows.to_p + j, tiles_.at_once() ? A(1) / load(rows.mass + j) : fill(A(1)));
    }
    tiles_.for_classes([&](int64_t k) {
      if (!tiles_.at_once())
        find_probabilities(tiles_, args_.logits, place, rows, arrays, k);
      add_classes(rows, arrays.e, tiles_.classes_from(k), sums + k);
    });
    for (int j = 0; j < place.count; ++j) {
      A* const lse_parts = this->lse_parts(first + j);
      lse_parts[0] = rows.counted[j] ? rows.m[j] : A(0);
      lse_parts[1] = rows.counted[j] ? rows.log_s[j] : A(0);
    }
  }

  // Maximum and mass so far, and e relative to that maximum.
  void measure_classes(TileRows<A>& rows, TileArrays<A>& arrays, int K) const {
    const int P = tiles_.tile.P;
    for (int j = 0; j < P; j += lanes<A>) {
      const V<A> before = load(rows.m + j);
      V<A> top = before, mass = {};
      for (int64_t i = j, k = 0; k < K; ++k, i += P)
        top = max<A>(load(arrays.z + i), top);
      int64_t i = j;
      for (int run = 0; run < K; run += tile_run) {
        V<A> mass_of_run = {};
        for (int k = run; k < K && k < run + tile_run; ++k, i += P) {
          const V<A> e = exp_nonpositive<A>(load(arrays.z + i) - top);
          store(arrays.e + i, e);
          mass_of_run += e;
        }
        mass += mass_of_run;
      }
      store(rows.m + j, top);
      store(rows.mass + j, load(rows.mass + j) * exp_nonpositive<A>(before - top) + mass);
    }
  }

  // p = e * to_p, of the rows that count.
  void add_classes(const TileRows<A>& rows, const A* e, int K, double* sums) const {
    const int P = tiles_.tile.P;
    const A low = A(args_.low), high = A(args_.high);
    for (int64_t k = 0; k < K; ++k, e += P) {
      V<A> sum = {};
      for (int j = 0; j < P; j += lanes<A>) {
        const V<A> p = clamped<A>(load(e + j) * load(rows.to_p + j), low, high);
        sum += load_ints<A>(rows.counted + j) ? p : fill(A(0));
      }
      sums[k] += sum_across<A>(sum);
    }
  }

  const Tiles<T> tiles_;
};

template <class T> class ColumnGradTiles : public TileJob<T, ColumnGradArgs> {
  using Base = TileJob<T, ColumnGradArgs>;
  using Base::args_, Base::tiles_, Base::P_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    open(place, rows);
    tiles_.for_classes([&](int64_t k) {
      find_probabilities(tiles_, args_.logits, place, rows, arrays, k);
      add_dots(rows, arrays.e, k);
    });
    tiles_.for_classes([&](int64_t k) {
      if (!tiles_.at_once())
        find_probabilities(tiles_, args_.logits, place, rows, arrays, k);
      if (args_.accumulate)
        tiles_.in(args_.grad, place, k, arrays.spare, arrays.z);
      make_gradient(rows, arrays, k);
      tiles_.out(arrays.out, args_.grad, place, k, arrays.spare, args_.past_cache);
    });
  }

  void open(const TilePlace& place, TileRows<A>& rows) const {
    const int64_t first = tiles_.first_row(place);
    const A* s = static_cast<const A*>(args_.lse_parts) + first * num_lse_parts;
    open_counts<A>(args_, first, place.count, P_, rows.counted);
    for (int j = 0; j < P_; ++j) {
      const bool there = j < place.count;
      rows.m[j] = there ? s[j * num_lse_parts] : A(0);
      rows.log_s[j] = there ? s[j * num_lse_parts + 1] : A(0);
      rows.total[j] = 0; // sum of u p
    }
  }

  V<A> slope(V<A> p, int64_t k) const {
    const A* slopes = static_cast<const A*>(args_.slopes);
    return slope_at<A>(p, fill(slopes[k]), A(args_.low), A(args_.high));
  }

  void add_dots(TileRows<A>& rows, const A* p, int64_t first) const {
    const int K = tiles_.classes_from(first);
    for (int j = 0; j < P_; j += lanes<A>) {
      V<A> dot = load(rows.total + j);
      for (int run = 0; run < K; run += tile_run) {
        V<A> dot_of_run = {};
        for (int k = run; k < K && k < run + tile_run; ++k) {
          const V<A> p_k = load(p + int64_t(k) * P_ + j);
          dot_of_run += p_k * slope(p_k, first + k);
        }
        dot += dot_of_run;
      }
      store(rows.total + j, dot);
    }
  }

  // What was in the gradient is in z.
  void make_gradient(const TileRows<A>& rows, TileArrays<A>& arrays, int64_t first) const {
    const int K = tiles_.classes_from(first);
    const A scale = *static_cast<const A*>(args_.scale);
    int64_t i = 0;
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < P_; j += lanes<A>, i += lanes<A>) {
        const V<A> p = load(arrays.e + i);
        const V<A> made = scale * p * (slope(p, first + k) - load(rows.total + j));
        const V<A> before = args_.accumulate ? load(arrays.z + i) : fill(A(0));
        store(arrays.out + i, before + (load_ints<A>(rows.counted + j) ? made : fill(A(0))));
      }
  }
};

} // namespace anl::cpu
